"""``gemel bench``: swap-in, latency and memory beside plain ONNX Runtime sessions of the same models.

Every figure of one kind comes from one run in which both sides take turns, because machines drift. Each part runs in a
process of its own, so that one side's memory and caches do not count for the other.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import numpy as np
import onnxruntime as ort
import psutil
from numpy.typing import NDArray
from rich.box import SIMPLE
from rich.table import Table

from .backends.ort_cpu import OrtCpu
from .bundle import Bundle, open_bundle

__all__ = ["Figures", "latency", "measure", "table"]

Figures = dict[str, Any]


def measure(
    bundle: Bundle,
    *,
    rounds: int = 30,
    plain: Mapping[str, Path] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Figures:
    """Measure a bundle.

    Args:
        bundle: whose models are measured; its device cache is made if it is missing.
        rounds: runs of each model on each side.
        plain: model name to the ONNX file of the other side; the bundle's own files when left out.
        say: told of each part before it starts.

    Returns:
        ``swap_ms``, ``bind_ms`` (a first swap-in) and ``plain_load_ms`` (p50, p99), ``swap_ratio``; ``latency_ratio``
        (CPU time of one thread, gemel / plain, median over models) and ``latency_ratios`` by model; ``memory_mb`` and
        ``plain_memory_mb`` (PSS of a process that has run every model once), ``blob_mb``; ``first_result_s`` from
        importing gemel.runtime to the first output.
    """
    files = {name: str((plain or {}).get(name) or bundle.path / f"{name}.onnx") for name in bundle.manifest.models}
    path = str(bundle.path)
    with OrtCpu(bundle, threads=1) as backend:
        blob = sum(segment.length for segment in backend.baked.segments.values())
    figures: Figures = {"models": len(files), "plain_is": "source" if plain else "bundle", "blob_mb": blob / 1e6}
    say("swap-in and session load")
    figures.update(_apart(_swaps, path, files))
    say("latency, one thread, in turn")
    figures["latency_ratios"] = {}
    figures["latency_ms"] = {}
    for name, file in files.items():
        ratio, ours, theirs = latency(path, name, file, rounds)
        figures["latency_ratios"][name] = ratio
        figures["latency_ms"][name] = {"gemel": ours, "plain": theirs}
    figures["latency_ratio"] = median(figures["latency_ratios"].values())
    say("memory after a run of each model")
    figures["memory_mb"] = _apart(_memory, path, None)
    figures["plain_memory_mb"] = _apart(_memory, path, files)
    say("import to first result")
    figures["first_result_s"] = median(_apart(_first_result, path) for _ in range(3))
    return figures


def table(figures: Figures) -> Table:
    """The figures for people."""
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


def _apart(function: Callable[..., Any], *args: Any) -> Any:
    """Call in a fresh process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *args).result()


def _swaps(path: str, files: Mapping[str, str], repeats: int = 20) -> Figures:
    """Swap-in: segments in the page cache but not mapped. The other side: a session from a file in the page cache.

    Bindings stay valid for the life of a process (addresses do not change on the host), so binding is measured apart:
    ``bind_ms`` is a swap-in with nothing bound yet.
    """
    bundle = open_bundle(path)
    swaps: list[float] = []
    binds: list[float] = []
    loads: list[float] = []
    with OrtCpu(bundle, threads=1) as backend:
        for name in files:
            backend.activate(name)
        for turn in range(repeats):
            for name, file in files.items():
                for times, forget in ((swaps, backend.release), (binds, backend.unbind)):
                    forget(name)
                    backend.arena.evict()
                    began = perf_counter()
                    backend.activate(name)
                    times.append((perf_counter() - began) * 1e3)
                    backend.release(name)
                if turn < 3:
                    began = perf_counter()
                    _plain(file)
                    loads.append((perf_counter() - began) * 1e3)
    result = {
        "swap_ms": _percentiles(swaps),
        "bind_ms": _percentiles(binds),
        "plain_load_ms": _percentiles(loads),
    }
    return {**result, "swap_ratio": result["plain_load_ms"]["p50"] / result["swap_ms"]["p50"]}


def latency(path: Path | str, model: str, file: Path | str, rounds: int) -> tuple[float, float, float]:
    """CPU time of one run of a model's main stage on one thread, beside a default session of an ONNX file.

    Measured in a process of its own, the two taking turns.

    Returns:
        gemel / file (median of the pairs), and both medians in milliseconds.
    """
    ratio, ours, theirs = _apart(_latency, str(path), model, str(file), rounds)
    return ratio, ours, theirs


def _latency(path: str, model: str, file: str, rounds: int) -> tuple[float, float, float]:
    bundle = open_bundle(path)
    inputs = _inputs(bundle, model)
    session = _plain(file)
    # The other side's file may call its input differently.
    other = dict(zip([port.name for port in session.get_inputs()], inputs.values(), strict=True))
    ours: list[float] = []
    theirs: list[float] = []
    with OrtCpu(bundle, threads=1) as backend:
        backend.activate(model)
        sides = (
            (ours, lambda: backend.run(model, "main", inputs)),
            (theirs, lambda: session.run(None, other)),
        )
        for turn in range(rounds + 2):
            # Who comes second finds warmer caches or a hotter core: the order alternates.
            for times, run in sides if turn % 2 else sides[::-1]:
                began = process_time()
                run()
                if turn >= 2:
                    times.append((process_time() - began) * 1e3)
    return median(a / b for a, b in zip(ours, theirs, strict=True)), median(ours), median(theirs)


def _memory(path: str, files: Mapping[str, str] | None) -> float:
    """PSS in MB of this process after a run of every model, by sessions of ``files`` or by gemel where None."""
    bundle = open_bundle(path)
    if files is not None:
        sessions = {name: _plain(file) for name, file in files.items()}
        for name, session in sessions.items():
            values = _inputs(bundle, name).values()
            session.run(None, dict(zip([port.name for port in session.get_inputs()], values, strict=True)))
        return _pss()
    with OrtCpu(bundle, threads=1) as backend:
        for name in bundle.manifest.models:
            backend.activate(name)
            backend.run(name, "main", _inputs(bundle, name))
            backend.release(name)
        return _pss()


def _first_result(path: str) -> float:
    """Seconds of a new interpreter from before the import to the first output."""
    script = (
        "import time; began = time.perf_counter()\n"
        "import sys, gemel.runtime\n"
        "from gemel.runtime.bench import first_output\n"
        "first_output(sys.argv[1])\n"
        "assert 'torch' not in sys.modules and 'onnx' not in sys.modules\n"
        "print(time.perf_counter() - began)"
    )
    done = subprocess.run([sys.executable, "-c", script, path], check=True, capture_output=True, text=True)
    return float(done.stdout)


def first_output(path: str) -> None:
    """Open a bundle and run its first model once."""
    bundle = open_bundle(path)
    name = next(iter(bundle.manifest.models))
    with OrtCpu(bundle) as backend:
        backend.activate(name)
        backend.run(name, "main", _inputs(bundle, name))


def _plain(file: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def _inputs(bundle: Bundle, model: str) -> dict[str, NDArray[np.float32]]:
    port = bundle.manifest.models[model].stages["main"].inputs[0]
    shape = [size if isinstance(size, int) else 1 for size in port.shape]
    return {port.name: np.random.default_rng(0).random(shape, np.float32)}


def _percentiles(values: list[float]) -> dict[str, float]:
    return {"p50": float(np.percentile(values, 50)), "p99": float(np.percentile(values, 99))}


def _pss() -> float:
    return float(psutil.Process(os.getpid()).memory_full_info().pss) / 1e6
