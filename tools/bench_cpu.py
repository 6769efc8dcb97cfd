"""Measure what gemel promises on a CPU, and write docs/benchmarks.md.

    .venv/bin/python tools/bench_cpu.py [--rounds 30]

Three workloads: the street example (trained weights), eight ResNet50 with different weights, and eight queries on one
ResNet50 (random weights: memory and times do not depend on training). Every figure comes from ``gemel bench``, which
alternates both sides in one run; the plain side is what ``torch.onnx.export`` writes, in default ONNX Runtime sessions.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime
import torch
import torchvision
from rich.console import Console
from safetensors.torch import save_file

from gemel.compiler import compile_workload
from gemel.compiler.plain import export_plain
from gemel.runtime.bench import Figures, measure, table
from gemel.runtime.bundle import open_bundle
from gemel.workload import load

ROOT = Path(__file__).resolve().parent.parent
DOC = ROOT / "docs" / "benchmarks.md"
STREET = ROOT / "examples" / "street" / "workload.yaml"


def eight_resnets(folder: Path, copies: int) -> Path:
    """A workload of eight queries on ``copies`` sets of ResNet50 weights."""
    for index in range(copies):
        torch.manual_seed(index)
        save_file(torchvision.models.resnet50().state_dict(), folder / f"{index}.safetensors")
    queries: list[dict[str, Any]] = [
        {
            "name": f"q{index}",
            "feed": "none",
            "task": "classification",
            "model": {"factory": "torchvision.models:resnet50", "weights": f"{index % copies}.safetensors"},
        }
        for index in range(8)
    ]
    path = folder / "workload.yaml"
    document = {"schema_version": "1", "feeds": {"none": {"source": "none.mp4"}}, "queries": queries}
    path.write_text(json.dumps(document))  # JSON is YAML
    return path


def bench(workload_path: Path, rounds: int) -> Figures:
    """Compile a workload and measure the bundle against plain exports."""
    workload = load(workload_path)
    with tempfile.TemporaryDirectory(prefix="gemel-bench-") as name:
        folder = Path(name)
        bundle = open_bundle(compile_workload(workload, folder / "bundle").path)
        return measure(bundle, rounds=rounds, plain=export_plain(workload, folder))


def write(results: Mapping[str, Figures]) -> None:
    """The figures as Markdown."""
    lines = [
        "# Benchmarks on a CPU",
        "",
        "Made by `.venv/bin/python tools/bench_cpu.py` (`make bench`). Both sides in one run, one thread, taking",
        "turns; medians. Plain sessions: default ONNX Runtime sessions of what `torch.onnx.export` writes by default.",
        "`swap-in` maps a model's segments from the page cache; `first swap-in` binds its weights as well. Memory is",
        "the proportional set size of a process that has run every model once, the interpreter included.",
        "",
        f"{platform.machine()}, ONNX Runtime {onnxruntime.__version__}, torch {torch.__version__.partition('+')[0]}.",
    ]
    for title, figures in results.items():
        load_ms, swap, bind = figures["plain_load_ms"]["p50"], figures["swap_ms"]["p50"], figures["bind_ms"]["p50"]
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
            f"| memory (PSS) | {ours:.0f} MB | {theirs:.0f} MB | weights {blob:.0f} MB + {ours - blob:.0f} MB |",
            f"| import to first result | {figures['first_result_s']:.2f} s | | |",
        ]
    DOC.write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    console = Console(highlight=False)
    results: dict[str, Figures] = {}
    with tempfile.TemporaryDirectory(prefix="gemel-resnets-") as name:
        folders = [Path(name) / part for part in ("different", "same")]
        for folder in folders:
            folder.mkdir()
        cases = {
            "Street example: three models, five queries": STREET,
            "Eight ResNet50 with different weights": eight_resnets(folders[0], 8),
            "Eight queries on one ResNet50": eight_resnets(folders[1], 1),
        }
        for title, path in cases.items():
            console.print(f"[bold]{title}[/]")
            results[title] = bench(path, rounds)
            console.print(table(results[title]))
    write(results)
    console.print(f"{DOC}")


if __name__ == "__main__":
    main()
