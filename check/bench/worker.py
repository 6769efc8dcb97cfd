"""Measurements of ``gemel bench``, each run in its own process: ``python -m gemel.check.bench.worker PART ARGUMENTS``.

PART is the name of a function of this module, ARGUMENTS is a JSON object with the function's arguments, and the result
is printed as JSON. A plain session opens a model's ONNX file with ONNX Runtime alone, without gemel. Times
are in milliseconds, memory is in MB (10^6 bytes).
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
    """Measure the time to swap a model in and the time to open a plain ONNX Runtime session of the model.

    Before each swap-in, the segments of the blob are in the operating system's page cache but not mapped. Weight
    addresses do not change on the host, so weights stay bound to the inputs of a model's graph for the life of a
    process. ``bind_ms`` is the time of a first swap-in, when no weight is bound yet. ``swap_ms`` is the time of a later
    swap-in.
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
    """Measure the CPU time of one run of a model in gemel and in a plain ONNX Runtime session of an ONNX file.

    A session that runs twice in a row finds its weights in the CPU's cache the second time. The order of gemel and
    the plain session is therefore reversed in every round. A ratio is computed from the summed times of two successive
    rounds, so that the faster second runs count equally for gemel and the plain session.

    Returns:
        Median of the ratio gemel / plain session, median CPU time in milliseconds of a run in gemel, and median CPU
        time in milliseconds of a run in the plain session.
    """
    bundle = open_bundle(path)
    inputs = _inputs(bundle, model)
    session = _plain(file)
    # The ONNX file of the plain session may name its inputs differently from the bundle.
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
    """Return the sums of pairs of times: of the first and second, of the third and fourth, and so on."""
    return [a + b for a, b in zip(times[::2], times[1::2], strict=True)]


def memory(path: str, files: Mapping[str, str] | None) -> float:
    """Return the memory of this process in MB (10^6 bytes) after every model of a bundle has run once.

    Memory is the proportional set size (PSS) that the operating system reports.

    Args:
        path: folder of the bundle.
        files: model name -> ONNX file to run with ONNX Runtime alone, with all sessions open together; None to run the
            models in gemel, one after the other.
    """
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
    """Open a bundle and run its first model once.

    Raises:
        RuntimeError: torch or onnx was imported, which the runtime must not need.
    """
    bundle = open_bundle(path)
    name = next(iter(bundle.manifest.models))
    with OrtCpu(bundle) as backend:
        backend.activate(name)
        backend.run(name, "main", _inputs(bundle, name))
    heavy = {"torch", "onnx"} & set(sys.modules)
    if heavy:
        raise RuntimeError(f"the runtime imported {heavy}")


def _plain(file: str) -> ort.InferenceSession:
    """Open a plain ONNX Runtime session of an ONNX file, on one thread of the CPU."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def _inputs(bundle: Bundle, model: str) -> dict[str, NDArray[np.float32]]:
    """Return input name -> one image of noise, for the stage ``main`` of a model."""
    port = bundle.manifest.models[model].stages["main"].inputs[0]
    shape = [size if isinstance(size, int) else 1 for size in port.shape]
    return {port.name: np.random.default_rng(0).random(shape, np.float32)}


def _percentiles(values: list[float]) -> dict[str, float]:
    return {"p50": float(np.percentile(values, 50)), "p99": float(np.percentile(values, 99))}


def _pss() -> float:
    """Return the proportional set size (PSS) of this process in MB (10^6 bytes)."""
    return float(psutil.Process().memory_full_info().pss) / 1e6


def _main() -> None:
    parts: dict[str, Any] = {part.__name__: part for part in (swaps, latency, memory)}
    name, arguments = sys.argv[1:]
    print(json.dumps(parts[name](**json.loads(arguments))))


if __name__ == "__main__":
    _main()
