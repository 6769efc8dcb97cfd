"""Compare stem sharing with merging: bytes of weights and CPU time of a frame, with neither, one and both.

    .venv/bin/python tools/bench_stems.py [--rounds 15] [--frames 100]

Merging stores equal layers once, wherever they are. Stem sharing runs the first layers once for a frame, where two
models have them in common. The first table is about two ResNet18 with random weights, because neither bytes nor times
depend on training. The second is about two queries on the street example's junction (tools/make_street_example.py
makes its files): the person detector, and a crowd classifier that was fine-tuned on the detector's backbone. The tables
are written into docs/stems.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import no_telemetry  # noqa: F401
import numpy as np
import onnxruntime
import torch
import torchvision
from documents import write_between
from rich.console import Console
from safetensors.torch import load_file, save_file
from stem_models import FROZEN, train_crowd
from torch import Tensor

from gemel.bundles.reader import Bundle, open_bundle
from gemel.check.contents.inspect import sizes
from gemel.compiler import compile_workload
from gemel.frames.frame import Frame
from gemel.runtime.backends.ort_cpu import OrtCpu
from gemel.runtime.backends.share_stems import shared_stems
from gemel.runtime.loop.inference import Inference
from gemel.runtime.ort.bake import bake
from gemel.runtime.ort.copy_times import cpu_times
from gemel.runtime.run import RunOptions, run_bundle
from gemel.workload import load_workload

ROOT = Path(__file__).resolve().parent.parent
DOC = ROOT / "docs" / "stems.md"
STREET = ROOT / "examples" / "street"
STAGES = ("layer1", "layer2", "layer3")
LATER = ("layer4.0.conv2.weight", "layer4.1.conv1.weight", "layer4.1.conv2.weight")
"""Kernels of ResNet18 that a merge shares although the layers before them differ: three quarters of its last stage."""
WAYS = ("no sharing", "stem sharing alone", "merging alone", "both")

State = Mapping[str, Tensor]


def resnets(folder: Path, shared: Callable[[str], bool]) -> Bundle:
    """Compile two ResNet18 whose weights are equal where ``shared`` says so, given a weight's name."""
    folder.mkdir()
    states = []
    for seed in range(2):
        torch.manual_seed(seed)
        states.append(torchvision.models.resnet18().state_dict())
    second = {name: states[0][name] if shared(name) else value for name, value in states[1].items()}
    model = {"factory": "torchvision.models:resnet18"}
    return compiled(folder, "none.mp4", {"first": (model, states[0]), "second": (model, second)}, "classification")


def compiled(folder: Path, source: str, models: Mapping[str, tuple[Mapping[str, Any], State]], *tasks: str) -> Bundle:
    """Write a workload of one feed and compile it.

    Args:
        folder: folder for all files.
        source: source of the feed.
        models: query -> its model as in workload.yaml, and the model's weights.
        tasks: task of each query; the last one holds for all that follow.
    """
    queries = []
    for number, (name, (model, state)) in enumerate(models.items()):
        save_file({key: value.clone() for key, value in state.items()}, folder / f"{name}.safetensors")
        task = tasks[min(number, len(tasks) - 1)]
        own = {**model, "weights": f"{name}.safetensors"}
        queries.append({"name": name, "feed": "camera", "task": task, "model": own})
    document = {"schema_version": "1", "feeds": {"camera": {"source": source}}, "queries": queries}
    (folder / "workload.yaml").write_text(json.dumps(document))  # JSON is YAML
    return open_bundle(compile_workload(load_workload(folder / "workload.yaml"), folder / "bundle").path)


def without_stems(bundle: Bundle) -> Bundle:
    """Return a bundle whose models run whole. It has the files and the device cache of the given one."""
    # Baked with its stems first: the cache is found by the id, which both have.
    bake(bundle)
    models = {name: model.model_copy(update={"stem": None}) for name, model in bundle.manifest.models.items()}
    return Bundle(bundle.path, bundle.manifest.model_copy(update={"models": models}), bundle.id)


def weights_of(bundle: Bundle) -> float:
    """Return the megabytes of a bundle's distinct weights."""
    return sizes(bundle)["unique"] / 1e6


def depths(folder: Path, rounds: int) -> Iterator[str]:
    """Measure two ResNet18 that have the stages up to each depth in common; yield the lines of a table."""
    yield "| common | | weights, MB | CPU of a frame, ms | frames/s on one core |"
    yield "|---|---|--:|--:|--:|"
    separate = resnets(folder / "separate", lambda name: False)
    for number, last in enumerate(STAGES, 1):
        begin = ("conv1", "bn1", *STAGES[:number])
        stem = resnets(folder / f"{last}-stem", lambda name, begin=begin: name.startswith(begin))  # type: ignore[misc]
        merged = resnets(
            folder / f"{last}-merged",
            lambda name, begin=begin: name.startswith(begin) or name in LATER,  # type: ignore[misc]
        )
        bundles = dict(zip(WAYS, (separate, stem, without_stems(merged), merged), strict=True))
        times = frame_times(bundles, rounds)
        for way in WAYS:
            title = f"stages up to {last}" if way == WAYS[0] else ""
            ms = times[way]
            yield f"| {title} | {way} | {weights_of(bundles[way]):.1f} | {ms:.1f} | {1e3 / ms:.1f} |"


def frame_times(bundles: Mapping[str, Bundle], rounds: int) -> dict[str, float]:
    """Return way -> median milliseconds of CPU time in which all queries answer one frame, on one thread.

    The ways take turns. Preparing the frame and decoding are included; reading it from a video is not.
    """
    picture = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    indices = count()
    with ExitStack() as stack:
        works = []
        for bundle in bundles.values():
            backend = stack.enter_context(OrtCpu(bundle, threads=1))
            queries = list(bundle.manifest.queries)
            stems = shared_stems(bundle.manifest, backend.stems, queries)
            works.append(partial(_answer, Inference(bundle, backend, stems=stems), queries, picture, indices))
        taken = [cpu_times(works) for _ in range(max(1, rounds // 15))]
    return dict(zip(bundles, map(median, zip(*taken, strict=True)), strict=True))


def _answer(infer: Inference, queries: Sequence[str], picture: Any, indices: Iterator[int]) -> None:
    frame = Frame("camera", next(indices), picture, 0.0, 0.0)
    for outcome in infer([(query, frame) for query in queries]):
        if isinstance(outcome, Exception):
            raise outcome


def junction(folder: Path, rounds: int, frames: int) -> Iterator[str]:
    """Measure two queries on the example's junction, offline from video to results; yield the lines of a table."""
    video, people = STREET / "data" / "junction.avi", load_file(STREET / "weights" / "people.safetensors")
    model = train_crowd(people, video)
    given = {"size": [300, 300], "mean": [0.5] * 3, "std": [0.5] * 3}
    detector = {"factory": "gemel.workload.zoo.ssdlite:ssdlite_mobilenet_v2", "args": {"num_classes": 1}}
    classifier = {"factory": "stem_models:crowd", "input": given}
    torch.manual_seed(1)
    own = {
        # No sharing: as if all layers had been fine-tuned, by a little.
        name: value * (1 + 1e-4 * torch.rand_like(value)) if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }
    bundles = {}
    for way, state in ((WAYS[0], own), (WAYS[2], model.state_dict()), (WAYS[3], model.state_dict())):
        if way != WAYS[3]:
            (folder / way).mkdir()
            queries = {"junction-people": (detector, people), "junction-crowd": (classifier, state)}
            merged = compiled(folder / way, str(video), queries, "detection", "classification")
        bundles[way] = merged if way == WAYS[3] else without_stems(merged)
    found: dict[str, list[tuple[float, Any]]] = {way: [] for way in bundles}
    for turn in range(rounds + 1):
        for way, bundle in bundles.items():
            run = _offline(bundle, frames, folder / f"{way}.jsonl")
            if turn:  # the first turn warms up caches
                found[way].append(run)
    yield f"The classifier has the first {FROZEN} of the detector's 19 blocks in common with it."
    yield from ("", "| | weights, MB | CPU of a frame, ms | runs of the stem a frame |", "|---|--:|--:|--:|")
    for way, runs in found.items():
        stems = list(runs[0][1]["stems"].values())
        ran = f"{stems[0]['frames'] / frames:g}" if stems else "-"
        yield f"| {way} | {weights_of(bundles[way]):.1f} | {median(cpu for cpu, _ in runs):.1f} | {ran} |"
    differ, largest, total = _differences(folder / f"{WAYS[2]}.jsonl", folder / f"{WAYS[3]}.jsonl")
    yield ""
    yield (
        f"Of {total} answers on {frames} frames, {differ} name other objects or classes with the stem shared than"
        f" without; scores and box corners differ by {largest:.1e} at most."
    )


def _offline(bundle: Bundle, frames: int, results: Path) -> tuple[float, Any]:
    """Run a bundle offline; return milliseconds of CPU time of a frame, and the summary as JSON."""
    results.unlink(missing_ok=True)
    began = process_time()
    options = RunOptions(offline=True, frames=frames, threads=1, results=results)
    summary = run_bundle(bundle, options)
    return (process_time() - began) * 1e3 / frames, summary.to_json()


def _differences(one: Path, other: Path) -> tuple[int, float, int]:
    """Return the number of answers that differ in what they name, the largest difference of a number, and the total."""
    rows = [
        {(row["query"], row["frame"]): row["result"] for row in map(json.loads, path.read_text().splitlines())}
        for path in (one, other)
    ]
    assert rows[0].keys() == rows[1].keys()
    differ, largest = 0, 0.0
    for key, result in rows[0].items():
        names, numbers = zip(*map(_parted, (result, rows[1][key])), strict=True)
        differ += names[0] != names[1]
        if names[0] == names[1] and numbers[0]:
            largest = max(largest, float(np.abs(np.subtract(*numbers)).max()))
    return differ, largest, len(rows[0])


def _parted(value: Any) -> tuple[list[Any], list[float]]:
    """Return the texts and whole numbers of a result, and its other numbers."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        parts = [_parted(each) for each in value]
        return [len(value), *(name for names, _ in parts for name in names)], [n for _, each in parts for n in each]
    return ([], [value]) if isinstance(value, float) else ([value], [])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15, help="timed repetitions of each figure of the first table")
    parser.add_argument("--frames", type=int, default=100, help="frames of each run of the second table")
    arguments = parser.parse_args()
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory(prefix="gemel-stems-") as name:
        folder = Path(name)
        head = f"One thread, ONNX Runtime {onnxruntime.__version__}."
        for title, lines in (
            ("depths", depths(folder, arguments.rounds)),
            ("junction", junction(folder, max(1, arguments.rounds // 5), arguments.frames)),
        ):
            text = "\n".join([head, "", *lines])
            console.print(text)
            write_between(DOC, title, text)


if __name__ == "__main__":
    main()
