"""Comparison of decoded answers: what counts as equal, and how a difference is named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gemel.check.source.result_match import match_answers
from gemel.runtime.decode.results import (
    Class,
    Detection,
    Embedding,
    Mask,
    Result,
    Segmentation,
    SegmentedClass,
    Text,
)


def car(left: float = 0.0, score: float = 0.9, label: str = "car", **parts: Any) -> Detection:
    return Detection((left, 0.0, left + 100.0, 100.0), score, label, **parts)


def mask(columns: int) -> Mask:
    pixels = np.zeros((40, 40), np.bool_)
    pixels[:, :columns] = True
    return Mask.of(pixels)


def segments(columns: int) -> Segmentation:
    return Segmentation((40, 40), (SegmentedClass("road", 1, mask(columns)),))


@pytest.mark.parametrize(
    ("found", "reference", "parts"),
    [
        ((car(0.5, 0.905),), (car(),), 1),
        # An object that scores as little as the threshold may be there or not.
        ((car(),), (car(), car(300, 0.305)), 1),
        ((car(), car(300, 0.305)), (car(),), 1),
        ((), (), 0),
        # Clipped to the frame, the box of an object outside the frame is a line or a sliver.
        ((Detection((0, 37.0, 0, 123.0), 0.9, "car"),), (Detection((0, 37.001, 0.002, 123.0), 0.9, "car"),), 1),
        # Two classes that score nearly the same may change places; one at the end of the list may be missing.
        ((Class("cat", 0.5), Class("dog", 0.495)), (Class("dog", 0.5), Class("cat", 0.495)), 2),
        ((Class("cat", 0.9), Class("dog", 0.05)), (Class("cat", 0.9), Class("cow", 0.05)), 2),
        (Embedding((0.6, 0.8)), Embedding((0.6001, 0.8)), 1),
        (segments(20), segments(20), 1),
        (Text("GO 1", 0.99), Text("GO 1", 0.985), 1),
    ],
)
def test_equal_but_for_rounding(found: Result, reference: Result, parts: int) -> None:
    match = match_answers(found, reference, 0.31)
    assert (match.different, match.frames, match.parts) == (None, 1, parts)


@pytest.mark.parametrize(
    ("found", "reference", "words"),
    [
        ((), (car(),), "car 0.90 at [0, 0, 100, 100] of the source: the nearest overlaps 0.000"),
        ((car(),), (), "car 0.90 at [0, 0, 100, 100] of the bundle: the nearest overlaps 0.000"),
        ((car(5),), (car(),), "car 0.90 at [0, 0, 100, 100] of the source: the nearest overlaps 0.905"),
        (
            (Detection((0, 37, 0, 123), 0.9, "car"),),
            (Detection((0, 40, 0, 123), 0.9, "car"),),
            "car 0.90 at [0, 40, 0, 123] of the source: the nearest overlaps 0.000",
        ),
        ((car(label="bus"),), (car(),), "car 0.90 at [0, 0, 100, 100] of the source: the nearest overlaps 0.000"),
        ((car(score=0.8),), (car(),), "car 0.90 at [0, 0, 100, 100] of the source: scores differ by 0.100"),
        ((car(mask=mask(15)),), (car(mask=mask(20)),), "of the source: its mask overlaps 0.750"),
        ((car(),), (car(mask=mask(20)),), "of the source: a mask on one side alone"),
        (
            (car(keypoints=((10.0, 10.0, 1.0),)),),
            (car(keypoints=((20.0, 10.0, 1.0),)),),
            "of the source: a point is moved by 10.0 pixels",
        ),
        ((Class("cat", 0.9),), (Class("dog", 0.9), Class("cat", 0.1)), "dog 0.900 is not in the bundle's answer"),
        (Embedding((1.0, 0.0)), Embedding((0.0, 1.0)), "cosine 0.0000 with the source's vector"),
        (Embedding((1.0,)), Embedding((0.0, 1.0)), "1 values, the source has 2"),
        (segments(15), segments(20), "mask of road: overlap 0.750 with the source's"),
        (Text("GO 7", 0.9), Text("GO 1", 0.9), "'GO 7', the source reads 'GO 1'"),
        (Text("GO", 0.9), Embedding((1.0,)), "the bundle answers Text, the source Embedding"),
    ],
)
def test_differences(found: Result, reference: Result, words: str) -> None:
    assert str(match_answers(found, reference, 0.31).different).endswith(words)


def test_frames_are_joined() -> None:
    one = match_answers((car(),), (car(),), 0.3)
    other = match_answers((car(0.5, 0.905),), (car(),), 0.3)
    both = one.joined(other)
    assert (both.frames, both.parts) == (2, 2)
    assert (both.overlap, both.score) == (other.overlap, other.score)
    assert str(both) == "2 objects in 2 frames: overlap at least 0.9900, scores within 0.0050"
    assert str(match_answers((), (), 0.3)) == "no objects in 1 frames, so none were compared"
