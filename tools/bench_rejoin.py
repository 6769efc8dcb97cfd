"""Go on from a merge after a scene has changed, and compare the images trained on with a merge from scratch.

    .venv/bin/python tools/bench_rejoin.py DATA

DATA has ``cifar10-jpeg.tar.xz`` (ImageFolder layout) and the ResNet-20 and -32 of akamaster/pytorch_resnet_cifar10.
Two queries, on a feed each, are merged. Then boxes sample ``--samples`` frames of each feed: those of the feed ``gate``
are of another scene (``tools/drift_scenes.py``), through JPEG. ``gemel merge --from --samples`` goes on from the merge;
beside it, a merge from the original weights uses the same samples. Writes a table into docs/drift.md. Where neither
brings the query back to its target, both take long: more than a quarter of an hour on a busy machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import cv2
import numpy as np
import torch
from count_images import count_images
from documents import write_between
from drift_scenes import DISTURBANCES
from safetensors.torch import save_file
from whole_folder import whole_folder

from gemel.bundles.merge_report import MergeReport
from gemel.frames.frame import Image
from gemel.merging.merge import Listener, MergeOptions, merge_workload
from gemel.merging.strategies import SearchSettings
from gemel.workload import load_workload
from gemel.workload.models.factory import read_state
from gemel.workload.zoo.cifar_resnet import cifar_resnet

_QUERIES = {"small": (20, "resnet20-12fca82f.th", "yard"), "deep": (32, "resnet32-d509ac18.th", "gate")}
"""Query -> depth of its ResNet, its public weights, and its feed."""
_PARTS = {"train": ("train", 0, 200), "val": ("test", 0, 100)}
"""Part of the images -> part of CIFAR-10, and the first and last image of each class."""
_SEEN = 100
"""First image of each class of CIFAR-10's test images that boxes sample."""
_SCENES = ("night, gamma 3",)
_TARGET = 0.9
"""Accuracy target of both queries. Lower than the usual one, so that a merge takes a minute or two."""
_SETTINGS = SearchSettings(inside=False)


@dataclass
class Effort:
    """Result of a merge with what it cost."""

    report: MergeReport
    trained: int
    """Number of images that models were trained on."""
    run: int
    """Number of all images that went through models."""
    seconds: float
    before: dict[str, float]
    """Query -> relative accuracy with the earlier merge's weights, on the images that choose; empty without one."""


class _Printer(Listener):
    """Progress of a merge on the console."""

    def __init__(self) -> None:
        self.before: dict[str, float] = {}

    def verdict(self, verdict: Any, report: MergeReport) -> None:
        outcome = verdict.outcome
        if verdict.trial.whole:
            self.before |= outcome.relative
        word = "accepted" if verdict.accepted else "-"
        worst = min(outcome.relative.values(), default=0.0)
        print(f"  {outcome.seconds:5.0f} s  {verdict.trial.group}: {word}, {worst:.3f}, {outcome.samples}", flush=True)


def prepare(data: Path, output: Path, samples: int) -> Path:
    """Write images, weights and workload into a folder, and return the workload file.

    Args:
        data: folder with the archive and the checkpoints.
        output: folder to write to.
        samples: number of images that boxes sample of each feed.
    """
    folder = output / "work"
    if not folder.exists():
        with whole_folder(folder) as work:
            names: dict[tuple[str, str], list[str]] = {}
            with tarfile.open(data / "cifar10-jpeg.tar.xz") as archive:
                for member in sorted((each for each in archive if each.isfile()), key=lambda each: each.name):
                    _, part, label, _ = member.name.split("/")
                    names.setdefault((part, label), []).append(member.name)
            parts = _PARTS | {"seen": ("test", _SEEN, _SEEN + samples // 10)}
            wanted = {
                name: f"{part}/{label}" if part != "seen" else part
                for part, (source, first, last) in parts.items()
                for (kind, label), files in names.items()
                if kind == source
                for name in files[first:last]
            }
            with tarfile.open(data / "cifar10-jpeg.tar.xz") as archive:
                for member in archive:
                    if member.name in wanted:
                        _, _, label, file = member.name.split("/")
                        target = work / "data" / wanted[member.name] / f"{file.rpartition('.')[0]}-{label}.jpg"
                        target.parent.mkdir(parents=True, exist_ok=True)
                        content = archive.extractfile(member)
                        assert content is not None
                        target.write_bytes(content.read())
            labels = sorted(label for kind, label in names if kind == "test")
            queries = []
            for query, (depth, checkpoint, feed) in _QUERIES.items():
                model = cifar_resnet(depth, 10)
                model.load_state_dict(read_state(data / checkpoint))
                save_file(dict(model.state_dict()), work / f"{query}.safetensors")
                made = {
                    "factory": "gemel.workload.zoo.cifar_resnet:cifar_resnet",
                    "args": {"depth": depth, "num_classes": 10},
                    "weights": f"{query}.safetensors",
                }
                images = {"train": "data/train", "val": "data/val"}
                queries.append(
                    {"name": query, "feed": feed, "task": "classification", "labels": labels, "model": made,
                     "data": images, "target": _TARGET}
                )  # fmt: skip
            feeds = {feed: {"source": "data/seen"} for _, _, feed in _QUERIES.values()}
            document = {"schema_version": "1", "feeds": feeds, "queries": queries}
            (work / "workload.yaml").write_text(json.dumps(document))
    return folder / "workload.yaml"


def _frames(folder: Path) -> Iterator[Image]:
    """Yield the sampled images in an order in which classes alternate."""
    paths = sorted(folder.iterdir(), key=lambda path: hashlib.sha256(path.name.encode()).hexdigest())
    for path in paths:
        yield np.asarray(cv2.imread(str(path)), np.uint8)


def write_samples(images: Path, scene: str, folder: Path) -> None:
    """Write samples of both feeds; those of the feed ``gate`` show another scene."""
    if folder.exists():
        return
    random = np.random.default_rng(0)
    with whole_folder(folder) as work:
        for feed, name in (("yard", "none"), ("gate", scene)):
            for number, image in enumerate(_frames(images)):
                changed = np.ascontiguousarray(DISTURBANCES[name](image, random))
                data = cv2.imencode(".jpg", changed, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
                sample = f"{feed}-{number:06d}"
                record = {
                    "run": "bench",
                    "bundle": "0" * 64,
                    "feed": feed,
                    "frame": number,
                    "time": number * 30.0,
                    "at": 1.8e9 + number * 30,
                    "image": f"{sample}.jpg",
                    "sha256": hashlib.sha256(data).hexdigest(),
                    "size": changed.shape[:2],
                    "answers": {},
                }
                (work / f"{sample}.jpg").write_bytes(data)
                (work / f"{sample}.json").write_text(json.dumps(record))


def merge(workload: Path, output: Path, **options: Any) -> Effort:
    """Merge into a new folder, and return the result with what it cost."""
    print(f"{output.name}", flush=True)
    began, printer = monotonic(), _Printer()
    with count_images() as count:
        made = MergeOptions(settings=_SETTINGS, device="cpu", resume=(output / "search").exists(), **options)
        report = merge_workload(load_workload(workload), output, made, printer)
    trained = sum(trial.samples for trial in report.trials)
    return Effort(report, trained, count.all, monotonic() - began, printer.before)


def _weights(folder: Path, query: str) -> bytes:
    return next((folder / "weights").glob(f"{query}-*")).read_bytes()


def _row(scene: str, on: Effort, anew: Effort, same: bool) -> str:
    """Return a row of the table in docs/drift.md."""
    before = on.before.get("deep", 1.0)
    after = [each.report.queries["deep"] for each in (on, anew)]
    kept = [f"{each.samples.value:.3f}" if each.samples is not None else "-" for each in after]
    own = [f"{each.relative:.3f}" for each in after]
    part = f"{on.trained / anew.trained:.2f}" if anew.trained else "-"
    return (
        f"| {scene} | {before:.3f} | {kept[0]} | {own[0]} | {'yes' if same else 'no'} | {on.report.layer_saving:.1%} |"
        f" {on.trained:,} | {on.run:,} | {on.seconds:.0f} | {kept[1]} | {anew.report.layer_saving:.1%} |"
        f" {anew.trained:,} | {anew.run:,} | {anew.seconds:.0f} | {part} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with the CIFAR-10 archive and the checkpoints")
    parser.add_argument("-o", "--output", type=Path, default=Path("out/rejoin"), help="new folder for merges")
    parser.add_argument("--scenes", nargs="+", choices=DISTURBANCES, default=_SCENES, help="scenes of the changed feed")
    parser.add_argument("--samples", type=int, default=600, help="samples of each feed, from 50 to 9000")
    options = parser.parse_args()
    torch.set_num_threads(1)
    output: Path = options.output / f"{options.samples}-samples"
    output.mkdir(parents=True, exist_ok=True)
    workload = prepare(options.data, output, options.samples)
    first = output / "merged"
    done = merge(workload, first)
    print(f"merged: {done.report.layer_saving:.1%} saved, {done.trained} images trained on, {done.seconds:.0f} s")
    rows = []
    for number, scene in enumerate(options.scenes):
        samples = output / f"samples-{number}"
        write_samples(workload.parent / "data" / "seen", scene, samples)
        on, anew = output / f"on-{number}", output / f"anew-{number}"
        results = merge(workload, on, earlier=first, samples=str(samples)), merge(workload, anew, samples=str(samples))
        rows.append(_row(scene, *results, _weights(first, "small") == _weights(on, "small")))
        print(rows[-1], flush=True)
    head = (
        "| scene | before | samples | own images | other bit-equal | saved | trained on | all images | s |"
        " from scratch: samples | saved | trained on | all images | s | part |"
    )
    lines = [head, "|---|" + "--:|" * 14, *rows]
    write_between(Path(__file__).resolve().parent.parent / "docs" / "drift.md", "rejoin", "\n".join(lines))


if __name__ == "__main__":
    main()
