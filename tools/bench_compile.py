"""Measure the CPU time of gemel-compile on workloads of one architecture and of small ONNX files, and of --help.

    .venv/bin/python tools/bench_compile.py
    .venv/bin/python tools/bench_compile.py mobilenet help

The weights are random: what a compilation costs does not depend on training. Models and bundles are written into a
temporary folder in the current one, and read once before they are compiled; 24 ResNet50 take 5 GB of disk.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import yaml
from rich.console import Console
from rich.table import Table

_COMMANDS = {
    "gemel": ("main", ()),
    "gemel run": ("main", ("run",)),
    "gemel compile": ("main", ("compile",)),
    "gemel inspect": ("main", ("inspect",)),
    "gemel check": ("main", ("check",)),
    "gemel merge": ("main", ("merge",)),
    "gemel-run": ("run_main", ()),
    "gemel-compile": ("compile_main", ()),
}
"""Command -> function of ``gemel.cli`` that runs the command, and the arguments before ``--help``."""


def main() -> None:
    """Measure the parts that are asked for, and print a table."""
    parts: dict[str, Callable[[Path, int], list[tuple[str, float]]]] = {
        "mobilenet": lambda folder, count: _factories(folder, "mobilenet_v3_small", count or 8),
        "resnet": lambda folder, count: _factories(folder, "resnet50", count or 24),
        "onnx": lambda folder, count: _onnx(folder, count or 10),
        "help": lambda folder, count: _help(),
    }
    parser = argparse.ArgumentParser(description="Measure the CPU time of gemel-compile, and of --help.")
    parser.add_argument("parts", nargs="*", help=f"what to measure: {', '.join(parts)}; all if left out")
    parser.add_argument("--models", type=int, default=0, help="models in a workload, in place of 8, 24 and 10")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(parts):
        parser.error(f"{', '.join(sorted(unknown))}: not one of {', '.join(parts)}")
    table = Table(title="CPU time, user and system, of one process; random weights", title_justify="left")
    table.add_column("command")
    table.add_column("CPU s", justify="right")
    for part in options.parts or parts:
        with tempfile.TemporaryDirectory(prefix="gemel-compile-", dir=".") as folder:
            for name, seconds in parts[part](Path(folder).absolute(), options.models):
                table.add_row(name, f"{seconds:.2f}")
    Console().print(table)


def _factories(folder: Path, architecture: str, count: int) -> list[tuple[str, float]]:
    """Measure the compilation of models that one torchvision factory makes, each with random weights of its own."""
    import torch
    import torchvision
    from safetensors.torch import save_file

    state = getattr(torchvision.models, architecture)(weights=None).state_dict()
    models = []
    for index in range(count):
        generator = torch.Generator().manual_seed(index)
        drawn = {
            name: value * (1 + 0.1 * torch.rand(value.shape, generator=generator))
            if value.is_floating_point()
            else value
            for name, value in state.items()
        }
        save_file(drawn, folder / f"m{index}.safetensors")
        models.append({"factory": f"torchvision.models:{architecture}", "weights": f"m{index}.safetensors"})
    return [(f"gemel-compile, {count} {architecture} from a factory", _compile(folder, models))]


def _onnx(folder: Path, count: int) -> list[tuple[str, float]]:
    """Measure the compilation of small ONNX files: six convolutions and a classifier."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    for index in range(count):
        random = np.random.default_rng(index)
        nodes, weights, value, channels = [], [], "image", 3
        for layer in range(6):
            kernel = random.standard_normal((16 << layer // 2, channels, 3, 3)).astype(np.float32) / channels
            weights.append(numpy_helper.from_array(kernel, f"k{layer}"))
            nodes.append(helper.make_node("Conv", [value, f"k{layer}"], [f"c{layer}"], strides=[1 + layer % 2] * 2))
            nodes.append(helper.make_node("Relu", [f"c{layer}"], [f"r{layer}"]))
            value, channels = f"r{layer}", len(kernel)
        weights.append(numpy_helper.from_array(random.standard_normal((channels, 5)).astype(np.float32), "head"))
        nodes.append(helper.make_node("GlobalAveragePool", [value], ["pooled"]))
        nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"]))
        nodes.append(helper.make_node("MatMul", ["flat", "head"], ["scores"]))
        ports = [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 64, 64])]
        outputs = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 5])]
        graph = helper.make_graph(nodes, "small", ports, outputs, weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.save(model, folder / f"m{index}.onnx")
    models = [{"onnx": f"m{index}.onnx"} for index in range(count)]
    return [(f"gemel-compile, {count} small ONNX files", _compile(folder, models))]


def _help() -> list[tuple[str, float]]:
    """Measure ``--help`` of commands, as the least of three calls of each."""
    return [
        (f"{name} --help", min(_cpu_of(function, *arguments, "--help") for _ in range(3)))
        for name, (function, arguments) in _COMMANDS.items()
    ]


def _compile(folder: Path, models: list[dict[str, str]]) -> float:
    """Compile a workload with one query for each model, and return the CPU time in seconds."""
    queries = [
        {"name": f"q{index}", "feed": "yard", "task": "classification", "model": model}
        for index, model in enumerate(models)
    ]
    document = {"schema_version": "1", "feeds": {"yard": {"source": "rtsp://camera/1"}}, "queries": queries}
    (folder / "workload.yaml").write_text(yaml.safe_dump(document))
    for path in folder.iterdir():
        path.read_bytes()  # into the page cache
    return _cpu_of("compile_main", str(folder / "workload.yaml"), "-o", str(folder / "bundle"))


def _cpu_of(function: str, *arguments: str) -> float:
    """Run a command of gemel in a process of its own, and return the process's CPU time in seconds."""
    code = f"import sys; from gemel.cli import {function}; sys.argv[0] = 'gemel'; {function}()"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env={**os.environ}
    )
    if done.returncode:
        raise SystemExit(f"{function} {' '.join(arguments)} failed: {done.stderr.decode()}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
