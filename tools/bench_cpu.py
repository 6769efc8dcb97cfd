"""Measure swap-in, CPU time, memory and start-up on a CPU against plain sessions; write docs/benchmarks.md's tables.

    .venv/bin/python tools/bench_cpu.py [--rounds 30]

Four workloads: the street example (trained weights), eight ResNet50 with different weights, eight queries on one
ResNet50, and two ResNet18 with equal kernels and private BatchNorm. The ResNets have random weights, because neither
memory nor times depend on training. Every figure comes from ``gemel bench``, which alternates both sides in one run.
The plain side is what ``torch.onnx.export`` writes, in default ONNX Runtime sessions.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import no_telemetry  # noqa: F401
import onnxruntime
import torch
import torchvision
from documents import write_between
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


def eight_resnets(folder: Path, copies: int, model: str = "resnet50") -> Path:
    """Write a workload of eight queries that use ``copies`` different ResNets; return the workload's path.

    Args:
        folder: folder to make for the workload and its weights.
        copies: number of different models.
        model: torchvision's name of the models.
    """
    folder.mkdir()
    for index in range(copies):
        torch.manual_seed(index)
        save_file(torchvision.models.get_model(model).state_dict(), folder / f"{index}.safetensors")
    return _workload(folder, model, [index % copies for index in range(8)])


def two_resnet18(folder: Path) -> Path:
    """Write a workload of two ResNet18 with equal kernels and different BatchNorms; return the workload's path."""
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
    """Compile a workload, compare its outputs with PyTorch's, and measure the bundle against plain exports."""
    workload = load_workload(workload_path)
    with tempfile.TemporaryDirectory(prefix="gemel-bench-") as name:
        folder = Path(name)
        bundle = open_bundle(compile_workload(workload, folder / "bundle").path)
        differences = [result.relative for result in compare_with_source(bundle, workload, rtol=1e-3, atol=1e-5)]
        figures = measure_bundle(bundle, rounds=rounds, plain=export_plain(workload, folder))
        return {**figures, "bytes": sizes(bundle), "difference": max(differences)}


def write(results: Mapping[str, Figures]) -> None:
    """Write the measured figures into docs/benchmarks.md as Markdown tables, a section per workload."""
    lines = [
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
    write_between(DOC, "figures", "\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=30, help="timed repetitions of each figure")
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
