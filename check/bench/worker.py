"""Parts of a benchmark, each run as ``python -m gemel.check.bench.worker PART ARGUMENTS`` in a fresh interpreter.

Arguments and result are JSON. Times are in milliseconds, memory is in MB (10^6 bytes).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from statistics import median
from time import perf_counter, process_time
from typing import Any

import numpy as np
import onnxruntime as ort
import psutil
from numpy.typing import NDArray

from ...bundles.reader import Bundle, open_bundle
from ...runtime.backends.ort_cpu import OrtCpu

__all__: list[str] = []


def swaps(path: str, files: Mapping[str, str], repeats: int = 20) -> dict[str, dict[str, float]]:
    """Measure a swap-in of segments that are in the page cache but not mapped, and a session load from the page cache.

    Addresses do not change on the host, so bindings stay valid for the life of a process. ``bind_ms`` therefore
    measures a first swap-in, when nothing is bound yet, apart from ``swap_ms``.
    """
    bundle = open_bundle(path)
    swap: list[float] = []
    bind: list[float] = []
    load: list[float] = []
    with OrtCpu(bundle, threads=1) as backend:
        for name in files:
            backend.activate(name)
        for turn in range(repeats):
            for name, file in files.items():
                for times, forget in ((swap, backend.release), (bind, backend.unbind)):
                    forget(name)
                    backend.arena.evict()
                    began = perf_counter()
                    backend.activate(name)
                    times.append((perf_counter() - began) * 1e3)
                    backend.release(name)
                if turn < 3:
                    began = perf_counter()
                    _plain(file)
                    load.append((perf_counter() - began) * 1e3)
    return {"swap_ms": _percentiles(swap), "bind_ms": _percentiles(bind), "plain_load_ms": _percentiles(load)}


def latency(path: str, model: str, file: str, rounds: int) -> tuple[float, float, float]:
    """Measure the CPU time of one run on both sides: the median ratio, and both medians.

    A side that runs twice in a row finds its weights in the CPU's cache the second time. So the order is reversed every
    turn, and a ratio is taken over a pair of turns, in which each side follows itself once.
    """
    bundle = open_bundle(path)
    inputs = _inputs(bundle, model)
    session = _plain(file)
    # The plain side's file may give its inputs other names.
    other = dict(zip([port.name for port in session.get_inputs()], inputs.values(), strict=True))
    ours: list[float] = []
    theirs: list[float] = []
    with OrtCpu(bundle, threads=1) as backend:
        backend.activate(model)
        sides = (
            (ours, lambda: backend.run(model, "main", inputs)),
            (theirs, lambda: session.run(None, other)),
        )
        for turn in range(2 * (rounds // 2) + 2):
            for times, run in sides if turn % 2 else sides[::-1]:
                began = process_time()
                run()
                if turn >= 2:
                    times.append((process_time() - began) * 1e3)
    pairs = zip(_pairs(ours), _pairs(theirs), strict=True)
    return median(a / b for a, b in pairs), median(ours), median(theirs)


def _pairs(times: list[float]) -> list[float]:
    """Return the sums of the first and second time, of the third and fourth, and so on."""
    return [a + b for a, b in zip(times[::2], times[1::2], strict=True)]


def memory(path: str, files: Mapping[str, str] | None) -> float:
    """Measure the PSS of this process after a run of every model: by sessions of ``files``, or by gemel if None."""
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


def first_result(path: str) -> None:
    """Open a bundle and run its first model once."""
    bundle = open_bundle(path)
    name = next(iter(bundle.manifest.models))
    with OrtCpu(bundle) as backend:
        backend.activate(name)
        backend.run(name, "main", _inputs(bundle, name))
    heavy = {"torch", "onnx"} & set(sys.modules)
    if heavy:
        raise RuntimeError(f"the runtime imported {heavy}")


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
    return float(psutil.Process().memory_full_info().pss) / 1e6


def _main() -> None:
    parts: dict[str, Any] = {part.__name__: part for part in (swaps, latency, memory)}
    name, arguments = sys.argv[1:]
    print(json.dumps(parts[name](**json.loads(arguments))))


if __name__ == "__main__":
    _main()
