"""Benchmark for ``gemel bench``: swap-in time, latency and memory, compared with plain ONNX Runtime sessions.

A plain session opens a model's ONNX file with ONNX Runtime alone, without gemel. gemel and the plain
sessions are timed alternately in one run, because a machine's speed drifts. Each measurement runs in a fresh
interpreter, so that memory, caches and imports of one measurement do not affect the next.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from ...bundles.reader import Bundle
from ...errors import BackendError, BundleError
from ...runtime.backends.ort_cpu import OrtCpu

__all__ = ["Figures", "latency_ratio", "measure_bundle", "table"]

Figures = dict[str, Any]
"""Type of a benchmark's result: name of each figure -> its value, which can be written as JSON."""


def measure_bundle(
    bundle: Bundle,
    *,
    rounds: int = 30,
    plain: Mapping[str, Path] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Figures:
    """Measure swap-in time, latency and memory of a bundle and of plain ONNX Runtime sessions of its models.

    Args:
        bundle: open bundle; its device cache is created if it is missing.
        rounds: number of timed runs of each model, in gemel and in the plain session.
        plain: model name -> ONNX file for the plain session; None for the bundle's own ONNX files.
        say: called with the name of each measurement before it starts.

    Returns:
        ``swap_ms``, ``bind_ms`` (first swap-in of a model, before any weight is bound to an input of its graph) and
        ``plain_load_ms`` (opening of a plain session), each with the percentiles p50 and p99 over repeats;
        ``swap_ratio`` (p50 of ``plain_load_ms`` / p50 of ``swap_ms``); ``latency_ratio`` (CPU time of one run on one
        thread, gemel / plain session, median over models), with ``latency_ratios`` and ``latency_ms`` by model;
        ``memory_mb`` and ``plain_memory_mb`` (proportional set size, PSS, of a process that has run every model once);
        ``blob_mb`` (memory of gemel's weights); ``first_result_s`` (seconds from importing gemel.runtime to the first
        output).

    Raises:
        BundleError: ``plain`` lacks a model of the bundle.
        BackendError: a measurement failed.
    """
    files = {name: str(path.absolute()) for name, path in _files(bundle, plain).items()}
    path = str(bundle.path.absolute())
    with OrtCpu(bundle, threads=1) as backend:
        specs = {**backend.baked.segments, **backend.baked.computed.segments}
        swapped = sum(specs[name].length for name in backend.segments)
        weights = swapped + backend.budget - backend.room
    figures: Figures = {"models": len(files), "plain_is": "export" if plain else "bundle", "blob_mb": weights / 1e6}
    say("swap-in and session load")
    figures.update(_apart("swaps", path=path, files=files))
    figures["swap_ratio"] = figures["plain_load_ms"]["p50"] / figures["swap_ms"]["p50"]
    say("latency, one thread, in turn")
    figures["latency_ratios"] = {}
    figures["latency_ms"] = {}
    for name, file in files.items():
        ratio, ours, theirs = latency_ratio(path, name, file, rounds)
        figures["latency_ratios"][name] = ratio
        figures["latency_ms"][name] = {"gemel": ours, "plain": theirs}
    figures["latency_ratio"] = median(figures["latency_ratios"].values())
    say("memory after a run of each model")
    figures["memory_mb"] = _apart("memory", path=path, files=None)
    figures["plain_memory_mb"] = _apart("memory", path=path, files=files)
    say("import to first result")
    figures["first_result_s"] = median(_first_result(path) for _ in range(3))
    return figures


def _files(bundle: Bundle, plain: Mapping[str, Path] | None) -> Mapping[str, Path]:
    """Return model name -> ONNX file from which ``gemel bench`` opens the model's plain ONNX Runtime session."""
    models = bundle.manifest.models
    if plain is None:
        return {name: bundle.file(model.stages["main"].file) for name, model in models.items()}
    missing = [name for name in models if name not in plain]
    if missing:
        raise BundleError(f"the workload has no query {missing[0]!r}, from which the bundle has a model")
    return {name: plain[name] for name in models}


def latency_ratio(path: Path | str, model: str, file: Path | str, rounds: int) -> tuple[float, float, float]:
    """Compare the CPU time of a model's stage ``main`` on one thread with a plain session of an ONNX file.

    Args:
        path: folder of the bundle.
        model: name of the model.
        file: ONNX file of the same model.
        rounds: number of timed runs, in gemel and in the plain session.

    Returns:
        Median of the ratio gemel / plain session, median CPU time in milliseconds of a run in gemel, and median CPU
        time in milliseconds of a run in the plain session.
    """
    arguments = {"path": str(Path(path).absolute()), "file": str(Path(file).absolute())}
    ratio, ours, theirs = _apart("latency", model=model, rounds=rounds, **arguments)
    return ratio, ours, theirs


def table(figures: Figures) -> Table:
    """Return the figures of :func:`measure_bundle` as a table for the console."""
    rows = Table(title=f"{figures['models']} models", title_justify="left", box=SIMPLE)
    for column, side in (("figure", "left"), ("gemel", "right"), ("plain sessions", "right"), ("ratio", "right")):
        rows.add_column(column, justify=side)  # type: ignore[arg-type]
    load = figures["plain_load_ms"]
    for title, key in (("swap-in", "swap_ms"), ("first swap-in", "bind_ms")):
        for name, value in figures[key].items():
            faster = f"1/{load[name] / value:.0f}"
            rows.add_row(f"{title}, {name}", f"{value:.3f} ms", f"{load[name]:.1f} ms", faster)
    for name, ratio in figures["latency_ratios"].items():
        both = figures["latency_ms"][name]
        rows.add_row(f"CPU time, {name}", f"{both['gemel']:.1f} ms", f"{both['plain']:.1f} ms", f"{ratio:.3f}")
    ours, theirs = figures["memory_mb"], figures["plain_memory_mb"]
    rows.add_row("memory (PSS)", f"{ours:.0f} MB", f"{theirs:.0f} MB", f"{ours / theirs:.2f}")
    rows.add_row("of which weights", f"{figures['blob_mb']:.0f} MB", "", "")
    rows.add_row("import to first result", f"{figures['first_result_s']:.2f} s", "", "")
    return rows


def _first_result(path: str) -> float:
    """Measure the seconds from importing gemel.runtime to the first output of a model, in a fresh interpreter."""
    script = (
        "import sys, time; began = time.perf_counter(); import gemel.runtime\n"
        "from gemel.check.bench.worker import first_result; first_result(sys.argv[1])\n"
        "print(time.perf_counter() - began)"
    )
    return float(_python("first result", "-c", script, path))


def _apart(part: str, **arguments: Any) -> Any:
    """Run a function of :mod:`gemel.check.bench.worker` in a fresh interpreter, and return the function's result."""
    return json.loads(_python(part, "-m", "gemel.check.bench.worker", part, json.dumps(arguments)))


def _python(part: str, *arguments: str) -> str:
    """Run Python with the given arguments in a fresh process, and return its standard output.

    Raises:
        BackendError: the process failed; the message names the measurement ``part`` and holds the last line of its
            error output.
    """
    # Run in an empty folder: -c and -m search the working folder first, which may hold modules of an untrusted bundle.
    with tempfile.TemporaryDirectory(prefix="gemel-bench-") as folder:
        command = [sys.executable, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    if done.returncode:
        raise BackendError(f"bench: {part} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return done.stdout
