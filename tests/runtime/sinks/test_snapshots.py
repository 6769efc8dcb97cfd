"""Pictures of events: which results are one, how often, and how many are kept."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import cv2
import numpy as np
import pytest
from sink_events import BOX, QUERIES, event

from gemel.bundles.output_specs import SnapshotsSpec
from gemel.runtime.decode.results import Class, Detection, Embedding, Mask, Result, Segmentation, SegmentedClass, Text
from gemel.runtime.sinks.snapshots import SnapshotWriter, event_labels

PERSON, CAR = Detection(BOX, 0.9, "person"), Detection((5, 5, 30, 30), 0.8, "car")


@pytest.mark.parametrize(
    ("result", "wanted", "expected"),
    [
        ((PERSON, CAR, PERSON), None, ["person", "car"]),
        ((PERSON, CAR), {"car", "dog"}, ["car"]),
        ((), None, []),
        ((Class("cat", 0.9), Class("dog", 0.1)), None, []),
        ((Class("cat", 0.9), Class("dog", 0.1)), {"cat", "dog"}, ["cat"]),
        (Text("GO 4711", 0.9), None, ["GO 4711"]),
        (Text("", 0.0), None, []),
        (Embedding((1.0,)), None, []),
        (Segmentation((1, 1), (SegmentedClass("fire", 1, Mask((1, 1), "01")),)), None, []),
        (Segmentation((1, 1), (SegmentedClass("fire", 1, Mask((1, 1), "01")),)), {"fire"}, ["fire"]),
    ],
)
def test_what_is_an_event(result: Result, wanted: set[str] | None, expected: list[str]) -> None:
    assert event_labels(result, None if wanted is None else frozenset(wanted)) == expected


def run(folder: Path, *results: tuple[float, Result], query: str = "people", **spec: object) -> list[str]:
    """Offer results at times to a writer, and return the names of the pictures."""
    writer = SnapshotWriter(SnapshotsSpec(folder=str(folder), **spec), QUERIES)
    for number, (time, result) in enumerate(results):
        found = event(number, result, query=query, time=time)
        if writer.wants(found):
            writer.write(deque([found]))
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_one_picture_until_the_cool_down_is_over(tmp_path: Path) -> None:
    names = run(tmp_path, *((time, (PERSON,)) for time in (0, 10, 29.9, 30, 45, 61)), cooldown=30)
    assert names == [f"people-person-20261127T1200{second}.000Z.jpg" for second in ("00", "30")] + [
        "people-person-20261127T120101.000Z.jpg"
    ]


def test_each_label_cools_down_by_itself(tmp_path: Path) -> None:
    names = run(tmp_path, (0, (PERSON,)), (1, (PERSON, CAR)), (2, (CAR,)), (31, (CAR,)), cooldown=30)
    assert [name.rpartition("-")[0] for name in names] == ["people-car", "people-person", "people-person-car"]


def test_only_wanted_labels(tmp_path: Path) -> None:
    assert run(tmp_path, (0, (PERSON,)), (1, ()), labels=("car",)) == []
    (name,) = run(tmp_path, (0, (PERSON, CAR)), labels=("car",))
    assert name.startswith("people-car-")


def test_the_picture_has_the_box(tmp_path: Path) -> None:
    (name,) = run(tmp_path, (0, (PERSON,)))
    image = np.asarray(cv2.imread(str(tmp_path / name)))
    assert image.shape == (180, 240, 3)
    assert abs(image[100, 40].astype(int) - 100).max() > 50
    assert abs(image[100, 80].astype(int) - 100).max() < 10
    assert not list(tmp_path.glob(".*"))


def test_the_folder_is_bounded(tmp_path: Path) -> None:
    names = run(tmp_path, *((time * 100, (PERSON,)) for time in range(50)), keep=40_000)
    sizes = [(tmp_path / name).stat().st_size for name in names]
    # The folder is looked at once in 20 pictures.
    assert sum(sizes) <= 40_000 + 20 * max(sizes)
    assert names[-1] == "people-person-20261127T132140.000Z.jpg"


def test_labels_do_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    inside = tmp_path / "in"
    for label in ("../x", "/etc/passwd", "a\0b", "\n", "x" * 500, ""):
        run(inside, (0, (Detection(BOX, 0.9, label),)))
    assert [each.name for each in tmp_path.iterdir()] == ["in"]


def test_a_picture_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        run(tmp_path, (0, (PERSON,)))
    assert not list(tmp_path.iterdir())
