"""What a card makes of bundles: swap-in, loads beside runs, memory, and the mode of each architecture, in docs/gpu.md.

    .venv/bin/python tools/bench_gpu.py                           # every backend that can be opened here
    .venv/bin/python tools/bench_gpu.py --host --models 2         # no card: that all of it works, no figures

Eight ResNet-50 with random weights, as only times and bytes are measured: unmerged, and merged so that they share all
convolutions but those of the last stage, with BatchNorm of their own. For TensorRT, then every architecture of
docs/coverage.md, with weights bound and with constant ones that are refitted. All medians.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import onnxruntime as ort
import torch
import torchvision
import yaml
from coverage import CASES, Case, bundle_of
from documents import write_between
from rich.console import Console
from safetensors.torch import save_file

from gemel.bundles.reader import Bundle, open_bundle
from gemel.compiler import compile_workload
from gemel.errors import BackendError
from gemel.runtime.backends import open_backend
from gemel.runtime.backends.on_device import Array, OnDevice, OnHost
from gemel.runtime.backends.ort_cuda import OrtCuda
from gemel.runtime.backends.tensorrt import TensorRt
from gemel.runtime.device import Device
from gemel.runtime.device.host import HostDevice
from gemel.runtime.engines.record import ModeChoice
from gemel.workload import load_workload

_ROOT = Path(__file__).resolve().parent.parent
_BACKENDS = ("ort-cuda", "tensorrt", "tensorrt-rtx")
_PRIVATE = ("layer4.", "fc.")
"""How the names of weights begin that merged models do not share."""
_COPY = 256 << 20
_ROUNDS = 50


@dataclass(frozen=True)
class Row:
    what: str
    value: str
    asked: str = ""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=8)
    parser.add_argument("--swaps", type=int, default=10_000, help="of the soak")
    parser.add_argument("--host", action="store_true", help="on this machine's memory and CPU, and write nothing")
    parser.add_argument("--report", type=Path, default=_ROOT / "docs/gpu.md", help="where the tables are put in")
    options = parser.parse_args(arguments)
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        bundles = {merged: _bundle(Path(folder), options.models, merged=merged) for merged in (False, True)}
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
    """All figures of a backend, and the device's name."""
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
    """Markdown."""
    lines = ["| | measured | asked |", "|---|--:|--:|"]
    return "\n".join([*lines, *(f"| {row.what} | {row.value} | {row.asked} |" for row in rows)])


def modes(name: str) -> str:
    """Markdown: what was measured of each architecture when its engines were built, one model alone."""
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
    """Of each program with weights."""
    return [engine.choice for engine in backend._engines.engines.values() if engine.inputs]


@contextmanager
def _opened(name: str, bundle: Bundle, host: bool, memory: str | int = "all") -> Iterator[OnDevice]:
    with OrtCuda(bundle, HostDevice()) if host else open_backend(bundle, name, memory=memory) as backend:
        assert isinstance(backend, OnDevice)
        yield backend


def _frame() -> Array:
    return np.random.default_rng(0).random((1, 3, 224, 224), np.float32)


def _run(backend: OnDevice, model: str, frame: Array) -> None:
    backend.activate(model)
    backend.run(model, "main", {"image": frame})
    backend.release(model)


def _median_s(work: Callable[[], object], rounds: int = _ROUNDS, before: Callable[[], object] = lambda: None) -> float:
    times = []
    for _ in range(rounds):
        before()
        began = perf_counter()
        work()
        times.append(perf_counter() - began)
    return median(times)


def _bandwidth(device: Device) -> float:
    """Bytes a second."""
    source, target, stream = device.pinned(_COPY), device.allocate(_COPY), device.stream()

    def copy() -> None:
        device.upload(target, source, stream)
        stream.synchronize()

    copy()
    seconds = _median_s(copy, 5)
    device.free(target)
    return _COPY / seconds


def _bind_ms(backend: OnDevice) -> float:
    """Of a model whose weights are resident, from the runner's call to where it could run."""
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
    """Seconds until the weights of a model are there, when another one's were; and their bytes."""
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
    """Milliseconds of a run alone, and while another model's weights come."""
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
    """Milliseconds of a run on an ordinary session, which has its weights as constants."""
    stage = next(iter(bundle.manifest.models.values())).stages["main"]
    providers = ["CPUExecutionProvider"] if host else ["CUDAExecutionProvider", "CPUExecutionProvider"]
    options = ort.SessionOptions()
    options.intra_op_num_threads = backend.threads
    session = ort.InferenceSession(str(bundle.file(stage.file)), options, providers=providers)
    frame = {"image": _frame()}
    session.run(None, frame)
    return _median_s(lambda: session.run(None, frame)) * 1e3


def _memory(name: str, bundle: Bundle, host: bool) -> tuple[int, int]:
    """Bytes of the device that all models take once each has run, and those of their weights."""
    with _opened(name, bundle, host) as backend:
        device = backend.device
        # What was free before weights were allocated.
        before = device.memory()[0] + backend.arena.footprint(backend.room)
        for model in bundle.manifest.models:
            _run(backend, model, _frame())
        return before - device.memory()[0], sum(backend.segments.values())


def _soak(name: str, bundle: Bundle, swaps: int, host: bool) -> int:
    """Bytes of the device that are gone after so many swaps under the smallest budget."""
    with _opened(name, bundle, host, memory="min") as backend:
        models, frame = list(bundle.manifest.models), _frame()
        for model in models * 2:
            _run(backend, model, frame)
        before = backend.device.memory()[0]
        for number in range(swaps):
            _run(backend, models[number % len(models)], frame)
        return before - backend.device.memory()[0]


def _bundle(folder: Path, count: int, *, merged: bool) -> Bundle:
    work = folder / ("merged" if merged else "unmerged")
    work.mkdir()
    queries = []
    for index in range(count):
        torch.manual_seed(0 if merged else 1 + index)
        common = torchvision.models.resnet50().state_dict()
        torch.manual_seed(1 + index)
        own = torchvision.models.resnet50()
        for layer in own.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(layer.weight, 0.5, 1.5)
        state = {
            key: value if key.startswith(_PRIVATE) or value.ndim < 2 else common[key]
            for key, value in own.state_dict().items()
        }
        save_file(state, work / f"{index}.safetensors")
        model = {
            "factory": "torchvision.models:resnet50",
            "weights": f"{index}.safetensors",
            "input": {"size": [224, 224]},
        }
        queries.append({"name": f"q{index}", "feed": "yard", "task": "classification", "model": model})
    document = {"schema_version": "1", "feeds": {"yard": {"source": "rtsp://nowhere/"}}, "queries": queries}
    (work / "workload.yaml").write_text(yaml.safe_dump(document))
    return open_bundle(compile_workload(load_workload(work / "workload.yaml"), work / "bundle").path)


if __name__ == "__main__":
    main()
