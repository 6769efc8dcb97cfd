"""Test merges of workloads whose images judge badly: each ends with a whole folder, and a line says what would help."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from helpers import keep_images

from gemel.bundles.merge_report import MergeReport, read_report
from gemel.errors import InputError
from gemel.merging.merge import Listener, MergeOptions, merge_workload
from gemel.merging.strategies import SearchSettings
from gemel.workload import load_workload


class Left(Listener):
    """Listener that keeps who was left as it is, and why."""

    def __init__(self) -> None:
        self.reasons: dict[str, str] = {}

    def left_out(self, model: str, error: InputError) -> None:
        self.reasons[model] = str(error)


def merge(folder: Path, *, labels: bool = True, **changes: Any) -> tuple[MergeReport, dict[str, str]]:
    """Merge a workload and check that the folder is whole; return the report, and who was left as it is.

    Args:
        folder: folder of workload.yaml.
        labels: whether the first query keeps its labelled data; it sees its feed otherwise.
        changes: fields of the first query.
    """
    path = folder / "workload.yaml"
    document = json.loads(path.read_text())
    document["queries"][0] |= changes
    if not labels:
        del document["queries"][0]["data"]
    path.write_text(json.dumps(document))
    listener = Left()
    options = MergeOptions(settings=SearchSettings(steps=4, batch=20), device="cpu")
    report = merge_workload(load_workload(path), folder / "merged", options, listener)
    assert read_report(folder / "merged" / "merge.json") == report
    assert report.finished and report.left == listener.reasons
    assert len(load_workload(folder / "merged" / "workload.yaml").queries) == 2
    for found in report.queries.values():
        assert found.own is not None and found.own.low >= found.target
    return report, listener.reasons


def frames(folder: Path, count: int, shade: int = 0, size: tuple[int, int] = (16, 16)) -> None:
    """Make the feed a folder of frames of one shade."""
    folder.mkdir(exist_ok=True)
    for index in range(count):
        assert cv2.imwrite(str(folder / f"{index:03}-{size[0]}.png"), np.full((*size, 3), shade, np.uint8))
    path = folder.parent / "workload.yaml"
    document = json.loads(path.read_text())
    document["feeds"]["yard"]["source"] = folder.name
    path.write_text(json.dumps(document))


def test_a_dark_room(trained: Path) -> None:
    frames(trained / "room", 100)
    _, left = merge(trained, labels=False)
    assert "query direction: there is nothing to judge by in" in left["direction"]
    assert "give a data.val with images that differ" in left["direction"]


def test_one_frame(trained: Path) -> None:
    frames(trained / "room", 1)
    _, left = merge(trained, labels=False)
    assert "fewer than 15 images: 1" in left["direction"] and "give a longer recording" in left["direction"]


def test_frames_of_another_size(trained: Path) -> None:
    # Frames of stripes, half of them twice as large.
    for index, path in enumerate(sorted((trained / "data/direction/val").rglob("*.png"))):
        image = cv2.imread(str(path))
        assert image is not None
        (trained / "room").mkdir(exist_ok=True)
        larger = cv2.resize(image, (32, 48)) if index % 2 else image
        cv2.imwrite(str(trained / "room" / f"{index:03}.png"), larger)
    frames(trained / "room", 0)
    report, left = merge(trained, labels=False)
    assert left == {}
    own = report.queries["direction"].own
    assert own is not None and report.queries["direction"].scores is not None


def test_a_target_of_one(trained: Path) -> None:
    report, left = merge(trained, target=1.0)
    assert left == {}
    assert report.queries["direction"].relative == 1.0
    assert any("give a target below 1" in note for note in report.queries["direction"].notes)


def test_too_few_images_for_the_target(trained: Path) -> None:
    keep_images(trained, 10)
    report, _ = merge(trained)
    assert report.saving <= 0.02
    assert any("give more frames" in note and "60 images" in note for note in report.queries["direction"].notes)


def test_labels_in_another_order(trained: Path) -> None:
    folder = trained / "data/direction"
    for part in ("train", "val"):
        names = [folder / part / name for name in ("flat", "steep", "upright")]
        for path in names:
            path.rename(path.with_suffix(".old"))
        for path, other in zip(names, [names[1], names[2], names[0]], strict=True):
            path.with_suffix(".old").rename(other)
    _, left = merge(trained)
    assert "query direction: the model is right on" in left["direction"]
    assert "check that they are in the order of its classes" in left["direction"]


def test_labels_that_contradict_each_other(trained: Path) -> None:
    for part in ("flat", "steep"):
        path = next((trained / "data/direction/val" / part).iterdir())
        for index in range(2):
            (trained / "data/direction/val/upright" / f"{part}-{index}.png").write_bytes(path.read_bytes())
    report, _ = merge(trained)
    assert any(
        "labels contradict" in note and "correct the labels" in note for note in report.queries["direction"].notes
    )


def test_a_query_without_objects(trained: Path) -> None:
    frames(trained / "room", 20)
    factory = "gemel.workload.zoo.ssdlite:ssdlite_mobilenet_v2"
    model = {"factory": factory, "args": {"num_classes": 2}, "input": {"size": [64, 64]}}
    _, left = merge(trained, labels=False, task="detection", name="people", threshold=0.99, model=model)
    assert "query people: there is no object to judge by" in left["people"]
