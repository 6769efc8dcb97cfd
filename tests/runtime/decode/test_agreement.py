"""Agreement with a reference equals values computed by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemel.runtime.decode.agreement import MEASURES, agreement
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


def test_several_labels() -> None:
    reference: list[Result] = [(Class("rain", 0.9), Class("night", 0.7)), (Class("night", 0.8),), ()]
    assert agreement("classification", reference, reference, multi_label=True) == 1
    # Two of three are found, and two of four answers are right.
    answers: list[Result | None] = [(Class("night", 0.9), Class("snow", 0.6)), (Class("night", 0.5),), (Class("a", 1),)]
    assert agreement("classification", answers, reference, multi_label=True) == pytest.approx(2 * 2 / (3 + 4))
    assert agreement("classification", [None] * 3, reference, multi_label=True) == 0
    assert agreement("classification", [(), (), ()], [(), (), ()], multi_label=True) is None


def masked(left: int, width: int = 10, score: float = 0.9, label: str = "person") -> Detection:
    """Return an object whose box says nothing: only masks tell such objects apart."""
    inside = np.zeros((20, 100), np.uint8)
    inside[5:15, left : left + width] = 1
    return Detection((0.0, 0.0, 100.0, 20.0), score, label, mask=Mask.of(inside))


def test_masks_of_objects() -> None:
    reference: list[Result] = [(masked(0), masked(40)), (masked(20),)]
    assert agreement("segmentation", reference, reference) == pytest.approx(1)
    assert agreement("detection", reference, reference) == pytest.approx(1)
    # Shifted by 3 of 10 columns, the intersection over union is 7 / 13; by 4, it is 6 / 14.
    near: list[Result | None] = [(masked(3), masked(43)), (masked(23),)]
    far: list[Result | None] = [(masked(4), masked(44)), (masked(24),)]
    assert agreement("segmentation", near, reference) == pytest.approx(1)
    assert agreement("segmentation", far, reference) == 0
    without = replace(masked(0), mask=None)
    assert agreement("segmentation", [(without,), (without,)], reference) == 0
    assert agreement("segmentation", [None, None], reference) == 0
    assert agreement("segmentation", [(), ()], [(without,), ()]) is None
    # A frame whose reference has no object, and a mask of a frame of another size.
    empty: list[Result] = [(), (masked(20),)]
    small = replace(masked(20), mask=Mask.of(np.ones((4, 4))))
    assert agreement("segmentation", [(), (masked(20),)], empty) == pytest.approx(1)
    assert agreement("segmentation", [(masked(0, score=0.5),), (small,)], empty) == 0


def body(left: float, shift: float = 0.0, points: int = 17, score: float = 0.9, sure: float = 0.8) -> Detection:
    """Return an object of 100 by 100 pixels with keypoints on its diagonal, shifted to the right."""
    keypoints = tuple((left + shift + 5.0 * each, 5.0 * each, sure) for each in range(points))
    return Detection((left, 0.0, left + 100, 100.0), score, "person", keypoints=keypoints)


@pytest.mark.parametrize("points", [17, 5, 1])
def test_keypoints(points: int) -> None:
    reference: list[Result] = [(body(0, points=points), body(200, points=points)), (body(50, points=points),)]
    assert agreement("pose", reference, reference) == pytest.approx(1)

    def moved(shift: float) -> float | None:
        return agreement(
            "pose", [(body(0, shift, points), body(200, shift, points)), (body(50, shift, points),)], reference
        )

    assert moved(1) == pytest.approx(1)
    assert moved(1000) == 0
    assert agreement("pose", [None, ()], reference) == 0
    # Boxes alone are no answer, and no truth.
    alone = replace(body(0), keypoints=())
    assert agreement("pose", [(alone,), (alone,)], reference) == 0
    assert agreement("pose", [(alone,)], [(alone,)]) is None


def test_similarity_of_keypoints() -> None:
    # exp(-d^2 / (2 area (2 sigma)^2)) with one point: sigma is 1, the area 0.53 of the box.
    limit = math.sqrt(math.log(2) * 2 * 5300 * 4)
    reference: list[Result] = [(body(0, points=1),)]
    assert agreement("pose", [(body(0, limit - 1, 1),)], reference) == pytest.approx(1)
    assert agreement("pose", [(body(0, limit + 1, 1),)], reference) == 0


def test_hidden_keypoints_do_not_count() -> None:
    person = body(0)
    hidden = replace(person, keypoints=(*person.keypoints[:9], *((x, y, 0.1) for x, y, _ in person.keypoints[9:])))
    moved = replace(person, keypoints=(*person.keypoints[:9], *((x + 500, y, 0.9) for x, y, _ in person.keypoints[9:])))
    assert agreement("pose", [(moved,)], [(hidden,)]) == pytest.approx(1)
    assert agreement("pose", [(moved,)], [(person,)]) == pytest.approx(1)  # 9 of 17 is more than half
    unsure = body(0, sure=0.1)
    assert agreement("pose", [(person,)], [(unsure,)]) == pytest.approx(1)  # no keypoint is sure, so all count
    assert agreement("pose", [(body(0, 500),)], [(unsure,)]) == 0


def scene(**columns: tuple[int, int]) -> Segmentation:
    """Return a frame of 10 by 100 pixels; each class covers columns from the first to before the second."""
    parts = []
    for number, (label, (left, right)) in enumerate(columns.items()):
        inside = np.zeros((10, 100), np.uint8)
        inside[:, left:right] = 1
        parts.append(SegmentedClass(label, number, Mask.of(inside)))
    return Segmentation((10, 100), tuple(parts))


def test_segmentation() -> None:
    reference: list[Result] = [scene(road=(0, 50), sky=(50, 100)), scene(road=(0, 100))]
    assert agreement("segmentation", reference, reference) == 1
    # Road: 40 + 100 of 150 columns; sky: 50 of 60.
    answers: list[Result | None] = [scene(road=(0, 40), sky=(40, 100)), scene(road=(0, 100))]
    assert agreement("segmentation", answers, reference) == pytest.approx((140 / 150 + 50 / 60) / 2)
    # A wrong sky in the second frame counts against sky; a class that the reference never has counts by what it hides.
    answers = [reference[0], scene(road=(0, 50), sky=(50, 75), car=(75, 100))]
    assert agreement("segmentation", answers, reference) == pytest.approx((100 / 150 + 50 / 75) / 2)
    assert agreement("segmentation", [reference[0], None], reference) == pytest.approx((50 / 150 + 1) / 2)
    other = Segmentation((1, 1), (SegmentedClass("road", 0, Mask.of(np.ones((1, 1)))),))
    assert agreement("segmentation", [reference[0], other], reference) == pytest.approx((500 / 1501 + 1) / 2)
    assert agreement("segmentation", [None], [Segmentation((10, 100), ())]) is None


def test_text() -> None:
    reference: list[Result] = [Text("GO 4711", 0.9), Text("", 0.0)]
    assert agreement("ocr", reference, reference) == 1
    # One character of seven is wrong; and a text where there is none.
    assert agreement("ocr", [Text("G0 4711", 0.9), Text("x", 0.9)], reference) == pytest.approx(6 / 7 / 2)
    assert agreement("ocr", [Text("GO 47112", 0.9), None], reference) == pytest.approx(7 / 8 / 2)
    assert agreement("ocr", [Text("O 471", 0.9), Text("", 0.0)], reference) == pytest.approx((5 / 7 + 1) / 2)
    assert agreement("ocr", [Text("", 0.0)], [Text("", 0.0)]) is None


@given(st.text("abc", max_size=6), st.text("abc", max_size=6))
def test_edit_distance(one: str, other: str) -> None:
    def distance(a: str, b: str) -> int:
        if not a or not b:
            return len(a) + len(b)
        return min(distance(a[1:], b) + 1, distance(a, b[1:]) + 1, distance(a[1:], b[1:]) + (a[0] != b[0]))

    expected = 1 - distance(one, other) / max(len(one), len(other), 1)
    found = agreement("ocr", [Text(one, 1.0)], [Text(other, 1.0)])
    assert found is None if not other else found == pytest.approx(expected)


def test_raw() -> None:
    one = Raw({"a": np.array([[1.0, 0.0]], np.float32), "b": np.array([2])})
    assert agreement("raw", [one], [Raw(dict(one.outputs))]) == 1
    # Output a is at 45 degrees, and output b is right.
    turned = Raw({"a": np.array([[1.0, 1.0]], np.float32), "b": np.array([2])})
    assert agreement("raw", [turned], [one]) == pytest.approx((math.sqrt(0.5) + 1) / 2)
    assert agreement("raw", [Raw({"a": one.outputs["a"]}), None], [one, one]) == pytest.approx(1 / 4)
    assert agreement("raw", [Raw({"a": np.zeros(2), "b": np.array([np.nan])})], [one]) == 0
    assert agreement("raw", [Raw({"a": -one.outputs["a"]})], [one]) == 0
    zeros = Raw({"a": np.zeros(3)})
    assert agreement("raw", [zeros], [Raw({"a": np.zeros(3)})]) == 1
    assert agreement("raw", [Raw({"a": np.ones(3)})], [zeros]) == 0
    text = Raw({"a": np.array(["x", "y"])})
    assert agreement("raw", [Raw({"a": np.array(["x", "z"])})], [text]) == 0.5
    assert agreement("raw", [None], [Raw({})]) is None


def test_every_task_has_a_measure() -> None:
    for task in MEASURES:
        assert agreement(task, [], []) is None


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
