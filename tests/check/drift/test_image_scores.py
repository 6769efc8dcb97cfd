"""Scores of single frames: each task's own measure, and what the measure of a set leaves open."""

from __future__ import annotations

import numpy as np
import pytest

from gemel.check.drift.image_scores import ImageScores
from gemel.runtime.decode.agreement import TaskName, agreement
from gemel.runtime.decode.results import (
    Class,
    Detection,
    Embedding,
    Mask,
    Raw,
    Result,
    Segmentation,
    SegmentedClass,
    Text,
)

BOX = (10.0, 10.0, 50.0, 60.0)
PERSON, FAR = Detection(BOX, 0.9, "person"), Detection((100, 100, 140, 160), 0.8, "person")
CAT, DOG = Class("cat", 0.9), Class("dog", 0.8)
ROAD = Segmentation((2, 2), (SegmentedClass("road", 1, Mask.of(np.array([[1, 1], [0, 0]]))),))
EMPTY = Segmentation((2, 2), ())


@pytest.mark.parametrize(
    ("task", "answer", "reference", "expected"),
    [
        ("detection", (PERSON,), (PERSON,), 1.0),
        ("detection", (), (PERSON,), 0.0),
        ("detection", (PERSON,), (PERSON, FAR), 0.505),  # as COCO reads its 101 recalls
        ("detection", (), (), None),
        # What the original does not see at all is a mistake, the larger, the surer the answer is.
        ("detection", (Detection(BOX, 0.3, "person"),), (), None),
        ("detection", (Detection(BOX, 0.37, "person"),), (), 0.9),
        ("detection", (Detection(BOX, 1.0, "person"),), (), 0.0),
        ("classification", (CAT, DOG), (CAT,), 1.0),
        ("classification", (DOG, CAT), (CAT,), 0.0),
        ("segmentation", ROAD, ROAD, 1.0),
        ("segmentation", ROAD, EMPTY, 0.0),
        ("segmentation", EMPTY, EMPTY, None),
        ("ocr", Text("AB 12", 0.9), Text("AB 1Z", 0.9), 0.8),
        ("ocr", Text("AB", 0.9), Text("", 0.0), 0.0),
        ("ocr", Text("", 0.0), Text("", 0.0), None),
        ("raw", Raw({"y": np.array([1.0, 0.0])}), Raw({"y": np.array([1.0, 0.0])}), 1.0),
        ("detection", None, (PERSON,), 0.0),
        ("ocr", None, Text("", 0.0), None),
    ],
)
def test_one_frame(task: TaskName, answer: Result | None, reference: Result, expected: float | None) -> None:
    found = ImageScores(task).score((answer,), reference)
    assert (found is None) == (expected is None)
    if found is not None and expected is not None:
        assert found[0] == pytest.approx(expected, abs=0.005)


def test_several_labels() -> None:
    scores = ImageScores("classification", several=True)
    assert scores.score(((CAT,),), (CAT, DOG)) == pytest.approx([2 / 3])
    assert scores.score(((CAT,),), ()) == [0.0]


def test_a_frame_is_left_out_if_one_answer_has_nothing_to_judge_by() -> None:
    scores = ImageScores("detection")
    assert scores.score(((PERSON,), ()), ()) is None
    assert scores.score(((PERSON,), ()), (PERSON,)) == [1.0, 0.0]


class TestEmbeddings:
    def make(self, count: int, off: float, seed: int = 0) -> tuple[list[Result], list[Result]]:
        """Return answers with an error, and right embeddings, both around a far mean."""
        random = np.random.default_rng(seed)
        right = 3 + random.normal(size=(count, 64))
        given = right + off * random.normal(size=right.shape)
        both = ([Embedding(tuple(each)) for each in side.tolist()] for side in (given, right))
        given_results, right_results = both
        return list(given_results), list(right_results)

    def test_the_mean_of_scores_is_the_accuracy_of_the_set(self) -> None:
        given, right = self.make(300, 0.4)
        scores = ImageScores("embedding")
        found = [scores.score((answer,), reference) for answer, reference in zip(given, right, strict=True)]
        assert found[:6] == [None] * 6
        mean = np.mean([each[0] for each in found if each is not None])
        accuracy = agreement("embedding", given, right)
        assert accuracy is not None and mean == pytest.approx(accuracy, abs=0.006)

    def test_answers_that_cannot_be_compared_are_wrong(self) -> None:
        _, right = self.make(7, 0)
        scores = ImageScores("embedding")
        for each in right[:6]:
            scores.score((each,), each)
        bad = (None, Embedding((float("nan"),) * 64), Embedding((1.0, 2.0)), right[6])
        assert scores.score(bad, right[6]) == [0.0, 0.0, 0.0, pytest.approx(1.0)]

    def test_frames_that_hardly_differ_are_not_amplified(self) -> None:
        scores = ImageScores("embedding")
        still = [
            Embedding(tuple(np.ones(64) + 1e-4 * np.random.default_rng(seed).normal(size=64))) for seed in range(9)
        ]
        found = [scores.score((still[(number + 1) % 9],), each) for number, each in enumerate(still)]
        assert all(each is None or each[0] > 0.99 for each in found)
