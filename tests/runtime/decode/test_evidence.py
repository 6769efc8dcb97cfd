"""Test that the accuracy of a draw of images is that of the images themselves, repeated as often as they were drawn."""

from __future__ import annotations

from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from gemel.runtime.decode.agreement import agreement, agreement_evidence
from gemel.runtime.decode.average_precision import matched, mean_average_precision
from gemel.runtime.decode.evidence import ImageEvidence, accuracy_of, mean_of
from gemel.runtime.decode.results import Class, Detection, Mask, Segmentation, SegmentedClass, Text

IMAGES = 12


def scene(rng: np.random.Generator, noise: float) -> list[list[Detection]]:
    """Make detections of two labels in some images; with ``noise`` (pixels) boxes are moved and scores are random."""
    frames = []
    for image in range(IMAGES):
        corners = np.random.default_rng(image).uniform(0, 80, (image % 4, 2))
        boxes = [(x, y, x + 20, y + 20) for x, y in corners + rng.normal(0, noise, corners.shape)]
        frames.append(
            [
                Detection(box, float(rng.uniform(0.3, 1)), "cat" if number % 3 else "dog")
                for number, box in enumerate(boxes)
            ]
        )
    return frames


def repeated(frames: list[Any], counts: NDArray[np.int64]) -> list[Any]:
    """Return the frames, each as often as it was drawn."""
    return [frame for frame, count in zip(frames, counts, strict=True) for _ in range(count)]


@pytest.mark.parametrize("by_count", [False, True])
def test_precision_of_a_draw_is_that_of_repeated_images(by_count: bool) -> None:
    rng = np.random.default_rng(0)
    truth, found = scene(rng, 0), scene(rng, 5)
    evidence = matched(found, truth, by_count=by_count)
    draws = rng.multinomial(IMAGES, [1 / IMAGES] * IMAGES, size=20)
    wanted = [
        mean_average_precision(repeated(found, counts), repeated(truth, counts), by_count=by_count) for counts in draws
    ]
    # A label that a draw does not show counts neither way.
    assert evidence.accuracies(draws.astype(float)) == pytest.approx(wanted, abs=1e-9)
    assert len(set(wanted)) > 10
    assert evidence.counted.tolist() == [image % 4 > 0 for image in range(IMAGES)]


def test_precision_is_that_of_pycocotools() -> None:
    rng = np.random.default_rng(1)
    truth, found = scene(rng, 0), scene(rng, 3)
    numbers = {"cat": 1, "dog": 2}

    def annotations(frames: list[list[Detection]]) -> list[dict[str, Any]]:
        """Return detections as COCO annotations."""
        return [
            {
                "id": number,
                "image_id": image,
                "category_id": numbers[each.label],
                "bbox": [each.box[0], each.box[1], 20, 20],
                "area": 400,
                "iscrowd": 0,
                "score": each.score,
            }
            for number, (image, each) in enumerate(
                ((image, each) for image, row in enumerate(frames) for each in row), 1
            )
        ]

    with redirect_stdout(StringIO()):
        wanted = COCO()
        wanted.dataset = {
            "info": {},
            "images": [{"id": image} for image in range(IMAGES)],
            "categories": [{"id": number} for number in numbers.values()],
            "annotations": annotations(truth),
        }
        wanted.createIndex()
        judged = COCOeval(wanted, wanted.loadRes(annotations(found)), "bbox")
        judged.params.iouThrs = np.array([0.5])
        judged.evaluate()
        judged.accumulate()
    precision = judged.eval["precision"][0, :, :, 0, 2].mean()
    assert 0.1 < precision < 0.95
    assert mean_average_precision(found, truth, by_count=False) == pytest.approx(precision, abs=1e-9)


def classes(rng: np.random.Generator) -> list[Any]:
    """Make answers of a classifier with several labels."""
    return [tuple(Class(label, 0.9) for label in "abc" if rng.random() < 0.5) for _ in range(IMAGES)]


def texts(rng: np.random.Generator) -> list[Any]:
    """Make texts that were read."""
    return [Text("".join(rng.choice(list("ab"), 4)), 0.9) for _ in range(IMAGES)]


def masks(rng: np.random.Generator) -> list[Any]:
    """Make class masks of small images."""
    return [
        Segmentation(
            (4, 4), tuple(SegmentedClass(label, "ab".index(label), Mask.of(rng.random((4, 4)) < 0.5)) for label in "ab")
        )
        for _ in range(IMAGES)
    ]


@pytest.mark.parametrize(
    ("task", "make", "multi_label"),
    [("classification", classes, True), ("ocr", texts, False), ("segmentation", masks, False)],
)
def test_agreement_of_a_draw_is_that_of_repeated_images(task: Any, make: Any, multi_label: bool) -> None:
    rng = np.random.default_rng(2)
    answers, reference = make(rng), make(rng)
    evidence = agreement_evidence(task, answers, reference, multi_label=multi_label)
    assert evidence is not None
    draws = rng.multinomial(IMAGES, [1 / IMAGES] * IMAGES, size=10)
    wanted = [
        agreement(task, repeated(answers, counts), repeated(reference, counts), multi_label=multi_label)
        for counts in draws
    ]
    assert evidence.accuracies(draws.astype(float)) == pytest.approx(wanted)


def test_numbers_that_are_none_count_as_wrong() -> None:
    evidence: ImageEvidence = mean_of([1.0, float("nan")])
    assert accuracy_of(evidence) == 0.5
    assert evidence.accuracies(np.zeros((1, 2))).tolist() == [0.0]
