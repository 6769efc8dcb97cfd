"""Agreement with a reference equals values computed by hand."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemel.runtime.decode.agreement import agreement
from gemel.runtime.decode.results import Class, Detection, Embedding, Result


def classes(*labels: str) -> list[Result]:
    return [(Class(label, 0.6), Class("other", 0.4)) for label in labels]


def box(left: float, score: float = 0.9, label: str = "person") -> Detection:
    return Detection((left, 0.0, left + 10, 10.0), score, label)


def test_classification() -> None:
    reference = classes("cat", "cat", "dog", "dog")
    assert agreement("classification", reference, reference) == 1
    assert agreement("classification", [*classes("cat", "dog", "dog"), None], reference) == 0.5
    assert agreement("classification", [(), None], [(), ()]) == 0.5  # no class above the threshold is an answer, too


def test_embedding() -> None:
    reference: list[Result] = [Embedding((2.0, 0.0)), Embedding((0.0, 0.0))]
    # Minus the mean (1, 0), the reference is (1, 0) and (-1, 0). The answer (1, 1) is at 45 degrees; one is missing.
    answers: list[Result | None] = [Embedding((2.0, 1.0)), None]
    assert agreement("embedding", answers, reference) == pytest.approx(math.sqrt(0.5) / 2)
    assert agreement("embedding", reference, reference) == pytest.approx(1)
    assert agreement("embedding", reference[::-1], reference) == 0  # cosine -1
    assert agreement("embedding", [Embedding((math.nan, 0.0)), Embedding((0.0, 0.0))], reference) == pytest.approx(0.5)


def test_detection(capsys: pytest.CaptureFixture[str]) -> None:
    reference: list[Result] = [(box(0),), (box(20),)]
    assert agreement("detection", reference, reference) == pytest.approx(1)
    # The detection with the higher score is wrong: precision is 0.5 up to a recall of 0.5, at 51 of 101 points.
    assert agreement("detection", [(box(0),), (box(60, 0.95),)], reference) == pytest.approx(51 * 0.5 / 101)
    assert agreement("detection", [(box(0),), None], reference) == pytest.approx(51 / 101)
    assert agreement("detection", [None, ()], reference) == 0
    # An intersection over union of 7 / 13 is a match, of 6 / 14 is none.
    assert agreement("detection", [(box(3),), (box(24),)], reference) == pytest.approx(51 / 101)
    assert agreement("detection", [(box(3),), (box(23),)], reference) == pytest.approx(1)
    assert agreement("detection", [(box(4),), (box(24),)], reference) == 0
    assert capsys.readouterr().out == ""


def test_false_detections_on_empty_frames() -> None:
    reference: list[Result] = [(box(0, 0.8),), ()]
    assert agreement("detection", [(box(0, 0.8),), (box(5, 0.9),)], reference) == pytest.approx(0.5)
    # A wrong detection that scores less than all right ones costs nothing.
    assert agreement("detection", [(box(0, 0.8),), (box(5, 0.1),)], reference) == pytest.approx(1)


def test_labels_count_by_their_objects() -> None:
    reference: list[Result] = [(box(0), box(20), box(40), box(60, label="dog"))]
    answers: list[Result | None] = [(box(0), box(20), box(40), box(60, label="cat"))]
    assert agreement("detection", answers, reference) == pytest.approx(0.75)


def test_more_detections_than_coco_looks_at() -> None:
    many = tuple(box(20 * each) for each in range(150))
    assert agreement("detection", [many], [many]) == pytest.approx(1)


def test_what_a_reference_is_not_sure_of_is_no_truth() -> None:
    assert agreement("detection", [()], [(box(0, 0.29),)]) is None
    assert agreement("detection", [(box(0),)], [(box(0), box(20, 0.1))]) == pytest.approx(1)


def test_nothing_to_judge_by() -> None:
    assert agreement("classification", [], []) is None
    assert agreement("embedding", [Embedding((1.0, 2.0)), None], [Embedding((1.0, 2.0))] * 2) is None
    assert agreement("detection", [(box(0),)], [()]) is None


values = st.floats(-1, 1, width=16)
moving = st.lists(st.tuples(values, values, values), min_size=3, max_size=8, unique=True).map(
    lambda rows: [Embedding((*row, number)) for number, row in enumerate(rows)]
)
crowds = st.lists(
    st.lists(st.tuples(st.integers(0, 5), st.floats(0.3, 1), st.sampled_from("ab")), unique_by=lambda each: each[0]),
    min_size=1,
    max_size=6,
).map(lambda frames: [tuple(box(20 * place, score, label) for place, score, label in frame) for frame in frames])


@given(moving)
def test_perfect_and_shifted_embeddings(reference: list[Result]) -> None:
    assert agreement("embedding", reference, reference) == pytest.approx(1)
    shifted = agreement("embedding", [None, *reference[:-1]], reference)
    assert shifted is not None
    assert 0 <= shifted < 1


@given(crowds)
def test_perfect_and_missing_detections(reference: list[Result]) -> None:
    found = agreement("detection", reference, reference)
    assert (found is None) if not any(reference) else found == pytest.approx(1)
    for frame, each in enumerate(reference):
        if each:
            worse = agreement("detection", [*reference[:frame], None, *reference[frame + 1 :]], reference)
            assert worse is not None
            assert worse < 1


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=20))
def test_the_answers_of_the_frames_before(labels: list[str]) -> None:
    reference = classes(*labels)
    kept = sum(before == now for before, now in pairwise(labels))
    assert agreement("classification", [None, *reference[:-1]], reference) == kept / len(labels)
