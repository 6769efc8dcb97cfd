"""Measure what gemel promises on a CPU, and write docs/benchmarks.md.

    .venv/bin/python tools/bench_cpu.py [--rounds 30]

Four workloads: the street example (trained weights), eight ResNet50 with different weights, eight queries on one
ResNet50, and two ResNet18 with equal kernels and own BatchNorm (random weights: neither memory nor times depend on
training). Every figure comes from ``gemel bench``, which alternates both sides in one run; the plain side is what
``torch.onnx.export`` writes, in default ONNX Runtime sessions.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime
import torch
import torchvision
from rich.console import Console
from safetensors.torch import save_file

from gemel.bundles.reader import open_bundle
from gemel.check.bench.bench import Figures, measure_bundle, table
from gemel.check.contents.inspect import sizes
from gemel.check.source.numerics import compare_with_source
from gemel.check.source.plain_export import export_plain
from gemel.compiler import compile_workload
from gemel.workload import load_workload

ROOT = Path(__file__).resolve().parent.parent
DOC = ROOT / "docs" / "benchmarks.md"
STREET = ROOT / "examples" / "street" / "workload.yaml"


def eight_resnets(folder: Path, copies: int) -> Path:
    """A workload of eight queries on ``copies`` sets of ResNet50 weights."""
    folder.mkdir()
    for index in range(copies):
        torch.manual_seed(index)
        save_file(torchvision.models.resnet50().state_dict(), folder / f"{index}.safetensors")
    return _workload(folder, "resnet50", [index % copies for index in range(8)])


def two_resnet18(folder: Path) -> Path:
    """A workload of two ResNet18 whose kernels are equal and whose BatchNorms are not."""
    folder.mkdir()
    torch.manual_seed(0)
    first = torchvision.models.resnet18().state_dict()
    second = dict(first)
    for name, value in first.items():
        if "bn" in name or "downsample.1" in name:
            second[name] = value + torch.rand(value.shape) if value.is_floating_point() else value
    for index, state in enumerate((first, second)):
        save_file({name: value.clone() for name, value in state.items()}, folder / f"{index}.safetensors")
    return _workload(folder, "resnet18", [0, 1])


def _workload(folder: Path, model: str, weights: Sequence[int]) -> Path:
    queries: list[dict[str, Any]] = [
        {
            "name": f"q{index}",
            "feed": "none",
            "task": "classification",
            "model": {"factory": f"torchvision.models:{model}", "weights": f"{file}.safetensors"},
        }
        for index, file in enumerate(weights)
    ]
    path = folder / "workload.yaml"
    document = {"schema_version": "1", "feeds": {"none": {"source": "none.mp4"}}, "queries": queries}
    path.write_text(json.dumps(document))  # JSON is YAML
    return path


def bench(workload_path: Path, rounds: int) -> Figures:
    """Compile a workload, compare it with PyTorch and measure the bundle against plain exports."""
    workload = load_workload(workload_path)
    with tempfile.TemporaryDirectory(prefix="gemel-bench-") as name:
        folder = Path(name)
        bundle = open_bundle(compile_workload(workload, folder / "bundle").path)
        differences = [result.relative for result in compare_with_source(bundle, workload, rtol=1e-3, atol=1e-5)]
        figures = measure_bundle(bundle, rounds=rounds, plain=export_plain(workload, folder))
        return {**figures, "bytes": sizes(bundle), "difference": max(differences)}


def write(results: Mapping[str, Figures]) -> None:
    """The figures as Markdown."""
    lines = [
        "# Benchmarks on a CPU",
        "",
        "Made by `.venv/bin/python tools/bench_cpu.py` (`make bench`). Both sides in one run, one thread, taking",
        "turns; medians. Plain sessions: default ONNX Runtime sessions of what `torch.onnx.export` writes by default.",
        "`swap-in` maps a model's segments from the page cache; `first swap-in` binds its weights as well. Memory is",
        "the proportional set size of a process that has run every model once, the interpreter included. `weights`:",
        "the bundle's, beside one copy a model.",
        "",
        f"{platform.machine()}, ONNX Runtime {onnxruntime.__version__}, torch {torch.__version__.partition('+')[0]}.",
    ]
    for title, figures in results.items():
        load_ms, swap, bind = figures["plain_load_ms"]["p50"], figures["swap_ms"]["p50"], figures["bind_ms"]["p50"]
        sizes = figures["bytes"]
        ours, theirs, blob = figures["memory_mb"], figures["plain_memory_mb"], figures["blob_mb"]
        lines += [
            "",
            f"## {title}",
            "| figure | gemel | plain sessions | |",
            "|---|--:|--:|--:|",
            f"| swap-in, p50 | {swap:.3f} ms | {load_ms:.1f} ms | {load_ms / swap:.0f}x faster |",
            f"| first swap-in, p50 | {bind:.3f} ms | {load_ms:.1f} ms | {load_ms / bind:.0f}x faster |",
            *(
                f"| CPU time of a run, {name} | {both['gemel']:.2f} ms | {both['plain']:.2f} ms"
                f" | ratio {figures['latency_ratios'][name]:.3f} |"
                for name, both in figures["latency_ms"].items()
            ),
            f"| weights | {sizes['unique'] / 1e6:.1f} MB | {sizes['models'] / 1e6:.1f} MB | a query each:"
            f" {sizes['queries'] / 1e6:.1f} MB |",
            f"| memory (PSS) | {ours:.0f} MB | {theirs:.0f} MB | weights {blob:.0f} MB + {ours - blob:.0f} MB |",
            f"| import to first result | {figures['first_result_s']:.2f} s | | |",
            f"| largest difference to the source models | {figures['difference']:.1e} | | relative |",
        ]
    DOC.write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    console = Console(highlight=False)
    results: dict[str, Figures] = {}
    with tempfile.TemporaryDirectory(prefix="gemel-resnets-") as name:
        folder = Path(name)
        cases = {
            "Street example: three models, five queries": STREET,
            "Eight ResNet50 with different weights": eight_resnets(folder / "different", 8),
            "Eight queries on one ResNet50": eight_resnets(folder / "same", 1),
            "Two ResNet18 with equal kernels and own BatchNorm": two_resnet18(folder / "pair"),
        }
        for title, path in cases.items():
            console.print(f"[bold]{title}[/]")
            results[title] = bench(path, rounds)
            console.print(table(results[title]))
    write(results)
    console.print(f"{DOC}")


if __name__ == "__main__":
    main()
