"""Measure whether batches pay: frames per CPU second of 1, 2, 4 and 8 frames as one batch and one by one.

    .venv/bin/python tools/bench_batches.py [MODEL ...] [--backend NAME ...] [--rounds 15] [--block NAME]

A MODEL is a bundle, an ONNX file of a model with one image input, or the name of an architecture of
tools/model_coverage.py, optionally with its input size and with ``int8``: ``resnet18``, ``resnet18@96``,
``resnet18@224:int8``. Architectures have random weights: times do not depend on training. int8 means the compiler's
quantization of every layer, with no accuracy judged; ``ort-cpu`` then computes in integers.

Both ways run in turn, on one thread, on different frames of noise that are prepared already. A ratio is the median of
the ratios of pairs. On a card, seconds are those of the wall clock. ``openvino``'s programs take one image each; for
this table only, a program is compiled for each size of batch. The table is written into docs/swapping.md, in the block
that ``--block`` names.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

import no_telemetry  # noqa: F401
import numpy as np
import onnxruntime
import torch
from documents import write_between
from engines_coverage import to_int8
from model_coverage import CASES, bundle_of
from numpy.typing import NDArray
from small_bundle import make_small_bundle

from gemel.bundles.manifest import Stage
from gemel.bundles.reader import MANIFEST, Bundle, open_bundle
from gemel.compiler import compile_workload
from gemel.errors import GemelError, first_line
from gemel.runtime.backends import Backend, open_backend
from gemel.runtime.loop.batches import BATCHES
from gemel.workload import load_workload

ROOT = Path(__file__).resolve().parent.parent
DOC = ROOT / "docs" / "swapping.md"
BACKENDS = ("ort-cpu", "openvino", "ort-cuda")
MODELS = (
    "mobilenet_v3_small@96",
    "mobilenet_v3_small@224",
    "resnet18@96",
    "resnet18@224",
    "mobilenet_v3_small@224:int8",
    "resnet18@96:int8",
    "resnet18@224:int8",
)
_WARM_UP = 3
_ENOUGH_S = 20.0
"""Seconds of one model on one backend after which no further round begins."""

Run = Callable[[NDArray[np.float32]], object]


def bundles_of(model: str, folder: Path) -> Bundle:
    """Return the bundle that a command-line argument names, compiled into ``folder`` if it is none yet."""
    path = Path(model)
    if (path / MANIFEST).exists():
        return open_bundle(path)
    if path.suffix == ".onnx":
        query = {"name": "a", "feed": "f", "task": "raw", "model": {"onnx": str(path.resolve())}}
        document = {"schema_version": "1", "feeds": {"f": {"source": "f.mp4"}}, "queries": [query]}
        (folder / "workload.yaml").write_text(json.dumps(document))
        return open_bundle(compile_workload(load_workload(folder / "workload.yaml"), folder / "bundle").path)
    named, _, precision = model.partition(":")
    name, _, size = named.partition("@")
    found = next((case for case in CASES if case.name == name), None)
    if found is None or precision not in ("", "int8"):
        raise SystemExit(f"{model}: is no bundle, no ONNX file and no architecture of tools/model_coverage.py")
    case = replace(found, size=(int(size), int(size))) if size else found
    return bundle_of(case, folder, to_int8)[1] if precision else bundle_of(case, folder)[1]


def in_openvino(bundle: Bundle, stage: Stage, count: int) -> Run:
    """Compile a stage in OpenVINO for batches of ``count`` images, in float32 and for one thread; return its run."""
    from openvino import Core

    core = Core()
    model = core.read_model(str(bundle.file(stage.file)))
    model.reshape({port.name: [count, *port.shape[1:]] for port in stage.inputs})
    settings = {"NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    return lambda images: request.infer({stage.inputs[0].name: images}, share_inputs=True)


def runs_of(backend: Backend, bundle: Bundle, model: str) -> dict[int, Run]:
    """Return number of images -> function that runs as many on a backend on which the model is active."""
    stage = bundle.manifest.models[model].stages["main"]

    def run(images: NDArray[np.float32]) -> object:
        return backend.run(model, "main", {stage.inputs[0].name: images})

    return {
        count: in_openvino(bundle, stage, count) if backend.name == "openvino" and count > 1 else run
        for count in BATCHES
    }


def one_by_one(run: Run, images: list[NDArray[np.float32]]) -> None:
    """Run each image alone."""
    for image in images:
        run(image)


def together(run: Run, images: list[NDArray[np.float32]]) -> None:
    """Run all images as one batch."""
    run(np.concatenate(images))


def figures(batches: dict[int, Run], shape: list[int], clock: Callable[[], float], rounds: int) -> str:
    """Measure a model both ways; return frames per second one by one, and the gain of each size, as table cells.

    Args:
        batches: number of images -> function that runs as many.
        shape: shape of one image.
        clock: function that returns the time in seconds.
        rounds: maximum number of measured rounds.
    """
    noise, began = np.random.default_rng(0), perf_counter()
    images = [noise.random(shape, np.float32) for _ in range(max(BATCHES))]
    times: dict[int, list[tuple[float, float]]] = {count: [] for count in BATCHES[1:]}
    for turn in range(_WARM_UP + rounds):
        for count in times:
            works = [partial(one_by_one, batches[1], images[:count]), partial(together, batches[count], images[:count])]
            taken = [0.0, 0.0]
            # Each way is first in every second round.
            for side in (0, 1) if turn % 2 else (1, 0):
                start = clock()
                works[side]()
                taken[side] = clock() - start
            if turn >= _WARM_UP:
                times[count].append((taken[0], taken[1]))
        if turn > _WARM_UP and perf_counter() - began > _ENOUGH_S:
            break
    fewest = BATCHES[1]
    first = fewest / median(alone for alone, _ in times[fewest])
    gains = [f"{median(alone / batch for alone, batch in pairs):.2f}" for pairs in times.values()]
    return " | ".join([f"{first:.1f}", *gains])


def rows(model: str, bundle: Bundle, backends: Sequence[str], rounds: int) -> Iterator[str]:
    """Yield a table row for each model of a bundle and each backend."""
    for name, spec in bundle.manifest.models.items():
        title = model if len(bundle.manifest.models) == 1 else f"{model} {name}"
        stage = spec.stages["main"]
        if not stage.takes_batches:
            yield f"| {title} | takes one frame |" + " |" * len(BATCHES)
            continue
        shape = [1, *(int(size) for size in stage.inputs[0].shape[1:])]
        for backend in backends:
            with open_backend(bundle, backend, memory="all", threads=1) as opened:
                opened.activate(name)
                clock = perf_counter if backend == "ort-cuda" else process_time
                cells = figures(runs_of(opened, bundle, name), shape, clock, rounds)
            yield f"| {title} | {backend} | {cells} |"


def missing(backends: Sequence[str]) -> dict[str, str]:
    """Return backend -> reason, for the backends that cannot be opened on this machine."""
    with tempfile.TemporaryDirectory(prefix="gemel-batches-") as folder:
        bundle = open_bundle(make_small_bundle(Path(folder)))
        reasons = {backend: _refusal(bundle, backend) for backend in backends}
    return {backend: reason for backend, reason in reasons.items() if reason}


def _refusal(bundle: Bundle, backend: str) -> str:
    """Return why a backend cannot be opened on this machine; an empty string if it can."""
    try:
        open_backend(bundle, backend).close()
    except GemelError as error:
        return first_line(error)
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="*", default=MODELS, help="bundles, ONNX files or architectures")
    parser.add_argument("--backend", nargs="*", default=BACKENDS, help="backends to measure")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds of each model")
    parser.add_argument("--block", default="batches", help="block of docs/swapping.md that the table replaces")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    absent = missing(arguments.backend)
    backends = [backend for backend in arguments.backend if backend not in absent]
    sizes = " | ".join(f"{count} as a batch" for count in BATCHES[1:])
    lines = [
        f"ONNX Runtime {onnxruntime.__version__}. Ratios are those of frames per second; above 1 the batch is faster.",
        "",
        f"| model | backend | frames/s one by one | {sizes} |",
        "|---|---|--:|" + "--:|" * (len(BATCHES) - 1),
    ]
    for model in arguments.models:
        with tempfile.TemporaryDirectory(prefix="gemel-batches-") as folder:
            for row in rows(model, bundles_of(model, Path(folder)), backends, arguments.rounds):
                print(row, flush=True)
                lines.append(row)
    for backend, reason in absent.items():
        print(f"{backend}: not run: {reason}")
    if absent:
        lines += ["", f"Not run here: {', '.join(absent)}."]
    write_between(DOC, arguments.block, "\n".join(lines))
    print(DOC)


if __name__ == "__main__":
    main()
