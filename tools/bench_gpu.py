"""Benchmark of bundles on a card: swap-in, loads beside runs, memory, and the mode of each architecture.

    .venv/bin/python tools/bench_gpu.py                           # every backend that can be opened on this machine
    .venv/bin/python tools/bench_gpu.py --host --models 2         # try the benchmark without a card

Writes its tables into docs/gpu.md. The models are eight ResNet-50 with random weights, because only times and bytes are
measured: unmerged, and merged so that they share all convolutions but those of the last stage, each with BatchNorm of
its own. For TensorRT, every architecture of docs/coverage.md follows, with bound and with refitted weights. All times
are medians.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import no_telemetry  # noqa: F401
import numpy as np
import onnxruntime as ort
from documents import write_between
from model_coverage import CASES, Case, bundle_of
from resnet_bundles import resnet_bundle
from rich.console import Console

from gemel.bundles.reader import Bundle
from gemel.errors import BackendError
from gemel.runtime.backends import open_backend
from gemel.runtime.backends.on_device import Array, OnDevice
from gemel.runtime.backends.on_host import OnHost
from gemel.runtime.backends.ort_cuda import OrtCuda
from gemel.runtime.backends.tensorrt import TensorRt
from gemel.runtime.device import Device
from gemel.runtime.engines.record import ModeChoice

_ROOT = Path(__file__).resolve().parent.parent
_BACKENDS = ("ort-cuda", "tensorrt", "tensorrt-rtx")
_COPY = 256 << 20
"""Bytes of the copy to the device that measures the bandwidth."""
_ROUNDS = 50
"""Number of times that each measured call is repeated."""


@dataclass(frozen=True)
class Row:
    """Row of a benchmark table: what was measured, the figure, and the target that the figure must reach."""

    what: str
    value: str
    asked: str = ""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=8, help="models in each bundle")
    parser.add_argument("--swaps", type=int, default=10_000, help="swaps of the test for lost memory")
    parser.add_argument("--host", action="store_true", help="use the tests' double of a device, and write nothing")
    parser.add_argument("--report", type=Path, default=_ROOT / "docs/gpu.md", help="document that gets the tables")
    options = parser.parse_args(arguments)
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        bundles = {merged: resnet_bundle(Path(folder), options.models, merged=merged) for merged in (False, True)}
        for name in ("ort-cuda",) if options.host else _BACKENDS:
            try:
                rows, card = measure(name, bundles, options.swaps, host=options.host)
            except BackendError as error:
                console.print(f"{name}: not measured: {error}", highlight=False, soft_wrap=True)
                continue
            text = table(rows)
            console.print(f"{name} on {card}\n{text}", highlight=False, soft_wrap=True)
            if options.host:
                continue
            write_between(options.report, f"{name} on {card}", text)
            if name != "ort-cuda":
                text = modes(name)
                console.print(f"modes of {name} on {card}\n{text}", highlight=False, soft_wrap=True)
                write_between(options.report, f"modes of {name} on {card}", text)


def measure(name: str, bundles: dict[bool, Bundle], swaps: int, *, host: bool) -> tuple[list[Row], str]:
    """Measure all figures of a backend on this device, and return them with the device's name."""
    rows = []
    with _opened(name, bundles[True], host) as backend:
        card, bandwidth = backend.device.name, _bandwidth(backend.device)
        rows.append(Row("copy of pinned memory to the device", f"{bandwidth / 1e9:.1f} GB/s"))
        rows.append(Row("swap-in, weights resident", f"{_bind_ms(backend):.3f} ms", "<= 0.2 ms"))
    for merged, what in ((False, "unmerged"), (True, "merged")):
        with _opened(name, bundles[merged], host) as backend:
            load_s, size = _load(backend)
            part = size / load_s / bandwidth
            asked = ">= 85 % of the copy" if not merged else ""
            rows.append(Row(f"swap-in, weights missing, {what}", f"{load_s * 1e3:.1f} ms, {part:.0%}", asked))
    with _opened(name, bundles[False], host) as backend:
        alone_ms, beside_ms = _overlap(backend)
        rows.append(Row("run beside the next model's load", f"{beside_ms / alone_ms:.2f} of a run alone"))
        if isinstance(backend, TensorRt):
            (choice,) = _choices(backend)
            rows.append(Row(f"run bound, refitted, and a refit from the device; {choice.mode}", str(choice)))
        else:
            constant_ms = _constant_ms(bundles[False], backend, host)
            rows.append(Row("run, beside a session of constant weights", f"{alone_ms / constant_ms:.2f}", "<= 1.05"))
    for merged, what in ((False, "unmerged"), (True, "merged")):
        taken, unique = _memory(name, bundles[merged], host)
        asked = "weights + activations of the largest + 64 MB"
        rows.append(Row(f"device memory, {what}", f"{taken / 1e6:.0f} MB, of which {unique / 1e6:.0f} weights", asked))
    grown = _soak(name, bundles[True], swaps, host)
    rows.append(Row(f"growth of device memory in {swaps} swaps", f"{grown / 1e6:.1f} MB", "0"))
    return rows, card


def table(rows: Sequence[Row]) -> str:
    """Return measured figures as a Markdown table."""
    lines = ["| | measured | asked |", "|---|--:|--:|"]
    return "\n".join([*lines, *(f"| {row.what} | {row.value} | {row.asked} |" for row in rows)])


def modes(name: str) -> str:
    """Build the engines of each architecture, one model per bundle, and return a Markdown table of the chosen modes."""
    lines = [
        "| model | mode | ms bound | ms refitted | ms of a refit from the device | bound / chosen |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            try:
                lines.append(_mode(case, name, Path(folder)))
            except BackendError as error:
                lines.append(f"| {case.name} | {error} | | | | |")
    return "\n".join(lines)


def _mode(case: Case, name: str, folder: Path) -> str:
    """Return the row of one architecture in the table of modes (bound or refitted weights), as Markdown."""
    with open_backend(bundle_of(case, folder)[1], name) as backend:
        assert isinstance(backend, TensorRt)
        choices = _choices(backend)
    used = " and ".join(sorted({choice.mode for choice in choices}))
    bound = [choice.bound_ms for choice in choices if choice.bound_ms is not None]
    refit = [choice.refit_ms for choice in choices if choice.refit_ms is not None]
    swap = [choice.swap_ms for choice in choices if choice.swap_ms is not None]
    if not len(bound) == len(refit) == len(swap) == len(choices):
        return f"| {case.name} | {used}: {next(choice.why for choice in choices if choice.why)} | | | | |"
    taken = [choice.refit_ms if choice.mode == "refit" else choice.bound_ms for choice in choices]
    ratio = sum(bound) / sum(each for each in taken if each is not None)
    return f"| {case.name} | {used} | {sum(bound):.3f} | {sum(refit):.3f} | {sum(swap):.3f} | {ratio:.2f} |"


def _choices(backend: TensorRt) -> list[ModeChoice]:
    """Return, for each program with weights, whether its weights are bound or refitted, with the measured times."""
    return [engine.choice for engine in backend._engines.engines.values() if engine.inputs]


def _opened(name: str, bundle: Bundle, host: bool, memory: str | int = "all") -> OnDevice:
    if host:
        # The double is part of the tests, which only a checkout of the repository has.
        sys.path.insert(0, str(_ROOT / "tests"))
        from host_device import HostDevice

        return OrtCuda(bundle, HostDevice(), memory=memory)
    backend = open_backend(bundle, name, memory=memory)
    assert isinstance(backend, OnDevice)
    return backend


def _frame() -> Array:
    return np.random.default_rng(0).random((1, 3, 224, 224), np.float32)


def _run(backend: OnDevice, model: str, frame: Array) -> None:
    """Swap a model in, run the model on a frame, and release it."""
    backend.activate(model)
    backend.run(model, "main", {"image": frame})
    backend.release(model)


def _median_s(work: Callable[[], object], rounds: int = _ROUNDS, before: Callable[[], object] = lambda: None) -> float:
    """Return the median seconds that calls of ``work`` take, each after a call of ``before`` that is not timed."""
    times = []
    for _ in range(rounds):
        before()
        began = perf_counter()
        work()
        times.append(perf_counter() - began)
    return median(times)


def _bandwidth(device: Device) -> float:
    """Return the bytes per second of a copy from page-locked memory to the device."""
    source, target, stream = device.pinned(_COPY), device.allocate(_COPY), device.stream()

    def copy() -> None:
        device.upload(target, source, stream)
        stream.synchronize()

    copy()
    seconds = _median_s(copy, 5)
    device.free(target)
    return _COPY / seconds


def _bind_ms(backend: OnDevice) -> float:
    """Return the milliseconds to swap in a model whose weights are resident, until it could run."""
    models, frame = list(backend._bundle.manifest.models), _frame()
    for model in models:
        _run(backend, model, frame)
    turns = iter(models * _ROUNDS)

    def swap() -> None:
        model = next(turns)
        backend.activate(model)
        stage = backend._bundle.manifest.models[model].stages["main"]
        executable = backend._executables[stage.program]
        assert not isinstance(executable, OnHost)
        backend._bind(executable, model, stage)
        backend.release(model)

    return _median_s(swap) * 1e3


def _load(backend: OnDevice) -> tuple[float, int]:
    """Return the seconds to load the weights that the second model does not share with the first, and their bytes."""
    models = list(backend._bundle.manifest.models)
    first, second = models[0], models[1]
    missing = [name for name in backend.segments_of(second) if name not in backend.segments_of(first)]

    def before() -> None:
        backend.evict()
        backend.activate(first)
        backend.release(first)

    def load() -> None:
        backend.activate(second)
        backend.release(second)

    return _median_s(load, 10, before), sum(backend.segments[name] for name in missing)


def _overlap(backend: OnDevice) -> tuple[float, float]:
    """Return the milliseconds of a model's run alone, and of its run while another model's weights are loaded."""
    models, frame = list(backend._bundle.manifest.models), _frame()
    first, second = models[0], models[1]
    _run(backend, first, frame)
    alone = _median_s(lambda: _run(backend, first, frame))

    def before() -> None:
        backend.evict()
        backend.activate(first)
        backend.release(first)
        backend.prefetch(backend.segments_of(second))

    return alone * 1e3, _median_s(lambda: _run(backend, first, frame), before=before) * 1e3


def _constant_ms(bundle: Bundle, backend: OnDevice, host: bool) -> float:
    """Return the milliseconds of a model's run in an ordinary ONNX Runtime session, with weights as constants."""
    stage = next(iter(bundle.manifest.models.values())).stages["main"]
    providers = ["CPUExecutionProvider"] if host else ["CUDAExecutionProvider", "CPUExecutionProvider"]
    options = ort.SessionOptions()
    options.intra_op_num_threads = backend.threads
    session = ort.InferenceSession(str(bundle.file(stage.file)), options, providers=providers)
    frame = {"image": _frame()}
    session.run(None, frame)
    return _median_s(lambda: session.run(None, frame)) * 1e3


def _memory(name: str, bundle: Bundle, host: bool) -> tuple[int, int]:
    """Return the bytes of device memory that all models take once each has run, and the bytes of their weights."""
    with _opened(name, bundle, host) as backend:
        device = backend.device
        # Free memory before the arena was allocated.
        before = device.memory()[0] + backend.arena.footprint(backend.room)
        for model in bundle.manifest.models:
            _run(backend, model, _frame())
        return before - device.memory()[0], sum(backend.segments.values())


def _soak(name: str, bundle: Bundle, swaps: int, host: bool) -> int:
    """Return the bytes of device memory that are lost in ``swaps`` swaps under the smallest budget."""
    with _opened(name, bundle, host, memory="min") as backend:
        models, frame = list(bundle.manifest.models), _frame()
        for model in models * 2:
            _run(backend, model, frame)
        before = backend.device.memory()[0]
        for number in range(swaps):
            _run(backend, models[number % len(models)], frame)
        return before - backend.device.memory()[0]


if __name__ == "__main__":
    main()
