"""Decoding of segmentations: masks at the frame's size, labels, thresholds and classes that are reported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from gemel.bundles.decode_specs import SegmentationDecode
from gemel.frames.preprocess import Geometry
from gemel.runtime.decode import DecodeContext, FloatArray, build_decoder
from gemel.runtime.decode.results import Segmentation

PLAIN = Geometry((90, 120), (64, 64), (64, 64))
LETTERBOXED = Geometry((90, 120), (64, 64), (48, 64))
CENTRED = Geometry((90, 120), (64, 64), (48, 64), (8, 0))
SMALLER = Geometry((20, 30), (64, 64), (43, 64))
SAME = Geometry((2, 3), (2, 3), (2, 3))


def no_tensor(name: str) -> FloatArray:
    raise AssertionError(f"{name} was asked for")


def no_stage(name: str, inputs: object) -> dict[str, FloatArray]:
    raise AssertionError(f"stage {name} was run")


def decode(
    output: NDArray[Any],
    geometry: Geometry = SAME,
    *,
    labels: Sequence[str] | None = None,
    threshold: float | None = None,
    only: Sequence[str] | None = None,
    count: int | None = None,
    **spec: Any,
) -> Segmentation:
    full = SegmentationDecode(output="scores", classes=count or output.shape[1], **spec)
    result = build_decoder(full, DecodeContext(no_tensor, labels, threshold, only))(
        {"scores": output}, geometry, no_stage
    )
    assert isinstance(result, Segmentation)
    assert result.size == geometry.source
    assert all(each.mask.size == geometry.source and each.mask.area() for each in result.classes)
    return result


def numbers(result: Segmentation) -> NDArray[np.int64]:
    """Return the class number of every pixel; -1 where there is none."""
    found = np.full(result.size, -1)
    for each in result.classes:
        inside = each.mask.array()
        assert (found[inside] == -1).all()
        found[inside] = each.class_id
    return found


def smooth(shape: tuple[int, ...], seed: int = 0) -> FloatArray:
    """Return scores ``[1, C, h, w]`` of regions a few scores wide."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.normal(size=(*shape[:2], 4, 4)).astype(np.float32))
    return F.interpolate(coarse, size=shape[2:], mode="bicubic").numpy()


def enlarged(scores: FloatArray, geometry: Geometry) -> FloatArray:
    """Return scores at the frame's size, by PyTorch."""

    def resized(planes: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        return F.interpolate(planes, size=size, mode="bilinear", align_corners=False)

    planes = torch.from_numpy(scores)
    if geometry.valid != geometry.input:
        rows, columns = geometry.covered
        planes = resized(planes, geometry.input)[..., rows, columns]
    return resized(planes, geometry.source)[0].numpy()


@pytest.mark.parametrize("geometry", [PLAIN, LETTERBOXED, CENTRED, SMALLER])
@pytest.mark.parametrize("size", [(16, 16), (64, 64), (128, 128), (8, 32)])
@pytest.mark.parametrize("count", [3, 40])
def test_best_class_of_enlarged_scores(geometry: Geometry, size: tuple[int, int], count: int) -> None:
    scores = smooth((1, count, *size))
    found, expected = numbers(decode(scores, geometry)), enlarged(scores, geometry)
    # Rounding decides where two classes score the same.
    first, second = np.sort(expected, axis=0)[:-3:-1]
    clear = first - second > 1e-4
    assert clear.mean() > 0.99
    assert (found == expected.argmax(0))[clear].all()


@pytest.mark.parametrize("count", [1, 5])
def test_scores_with_the_classes_last(count: int) -> None:
    scores = smooth((1, count, 16, 16))
    last = np.ascontiguousarray(np.moveaxis(scores, 1, -1))
    assert decode(last, LETTERBOXED, count=count, layout="NHWC") == decode(scores, LETTERBOXED)


def test_a_class_that_is_best_only_between_scores() -> None:
    # Class 2 is nowhere the best, but halfway between the scores of classes 0 and 1 it is.
    scores = np.array([[[[10, 0]], [[0, 10]], [[9, 9]]]], np.float32)
    found = numbers(decode(scores, Geometry((1, 8), (1, 8), (1, 8))))
    assert found[0].tolist() == [0, 0, 2, 2, 2, 2, 1, 1]


def test_labels_and_numbers() -> None:
    scores = np.zeros((1, 3, 2, 3), np.float32)
    scores[0, 1, 0], scores[0, 2, 1] = 1, 1
    assert [(each.label, each.class_id) for each in decode(scores).classes] == [("1", 1), ("2", 2)]
    named = decode(scores, labels=["a", "b", "c"])
    assert [(each.label, each.class_id) for each in named.classes] == [("b", 1), ("c", 2)]
    assert named.classes[0].mask.array().tolist() == [[True] * 3, [False] * 3]
    # One label less than classes: class 0 is the background.
    assert [(each.label, each.class_id) for each in decode(scores, labels=["road", "sky"]).classes] == [
        ("road", 1),
        ("sky", 2),
    ]


@pytest.mark.parametrize("labels", [["road"], ["__background__", "road"], ["Background", "road"]])
def test_background_is_not_reported(labels: list[str]) -> None:
    scores = np.zeros((1, 2, 2, 3), np.float32)
    scores[0, 1, 0, 0] = 1
    (road,) = decode(scores, labels=labels).classes
    assert (road.label, road.class_id, road.mask.area()) == ("road", 1, 1)
    assert decode(-scores, labels=labels).classes == ()


def test_only_some_classes_are_reported() -> None:
    scores = np.eye(6, dtype=np.float32).reshape(1, 6, 2, 3)
    labels = ["a", "b", "c", "d", "e", "f"]
    assert [each.label for each in decode(scores, labels=labels, only=["b", "4"]).classes] == ["b", "e"]
    assert decode(scores, only=["nothing"]).classes == ()


@pytest.mark.parametrize("shape", [(1, 2, 3), (1, 1, 2, 3)])
@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.float32])
def test_class_numbers(shape: tuple[int, ...], dtype: type) -> None:
    output: NDArray[Any] = np.array([0, 0, 2, 2, 1, 2], dtype).reshape(shape)
    assert numbers(decode(output, count=3, class_numbers=True)).tolist() == [[0, 0, 2], [2, 1, 2]]
    named = decode(output, count=3, class_numbers=True, labels=["road", "sky"])
    assert [(each.label, each.mask.area()) for each in named.classes] == [("road", 1), ("sky", 3)]


@pytest.mark.parametrize("geometry", [PLAIN, LETTERBOXED, CENTRED, SMALLER])
@pytest.mark.parametrize("size", [(16, 16), (64, 64), (128, 128)])
def test_class_numbers_are_those_of_the_nearest_pixel(geometry: Geometry, size: tuple[int, int]) -> None:
    output = smooth((1, 5, *size)).argmax(1)
    found = numbers(decode(output, geometry, count=5, class_numbers=True))
    rows, columns = np.mgrid[: geometry.source[0], : geometry.source[1]] + 0.5
    top, left = geometry.offset
    y = (rows / geometry.source[0] * geometry.valid[0] + top) / geometry.input[0] * size[0]
    x = (columns / geometry.source[1] * geometry.valid[1] + left) / geometry.input[1] * size[1]
    assert (found == output[0][y.astype(int), x.astype(int)]).mean() > 0.999


def test_impossible_class_numbers_are_no_class() -> None:
    output = np.array([[[-5, 0, 40_000], [2**40, 1, 255]]])
    assert numbers(decode(output, count=3, class_numbers=True)).tolist() == [[-1, 0, -1], [-1, 1, 255]]
    wrong = np.array([[[np.nan, np.inf, -np.inf], [0, 1, 2]]], np.float32)
    assert numbers(decode(wrong, count=3, class_numbers=True)).tolist() == [[-1, -1, -1], [0, 1, 2]]


@pytest.mark.parametrize(
    ("activation", "threshold", "expected"),
    [
        ("none", None, [0, 0, 0, 1, 1]),
        ("none", 0.8, [0, 0, 0, 0, 1]),
        ("sigmoid", None, [0, 0, 1, 1, 1]),
        ("sigmoid", 0.6, [0, 0, 0, 1, 1]),
        ("sigmoid", 1.0, [0, 0, 0, 0, 0]),
        ("sigmoid", 0.0, [1, 1, 1, 1, 1]),
    ],
)
def test_one_class(activation: str, threshold: float | None, expected: list[int]) -> None:
    # Their sigmoids are 0.27, 0.5, 0.57, 0.65 and 0.73.
    scores = np.array([-1, 0, 0.3, 0.6, 1], np.float32).reshape(1, 1, 1, 5)
    same = Geometry((1, 5), (1, 5), (1, 5))
    result = decode(scores, same, labels=["road"], threshold=threshold, activation=activation)
    assert (numbers(result)[0] + 1).tolist() == expected
    assert all(each.label == "road" for each in result.classes)
    # The channel axis may be missing.
    assert decode(scores[0], same, labels=["road"], threshold=threshold, activation=activation, count=1) == result


def test_a_threshold_leaves_unsure_pixels_without_a_class() -> None:
    probabilities = np.array([[0.5, 0.6, 0.9], [0.5, 0.4, 0.1]], np.float32).reshape(1, 2, 1, 3)
    same = Geometry((1, 3), (1, 3), (1, 3))
    assert numbers(decode(probabilities, same)).tolist() == [[0, 0, 0]]
    assert numbers(decode(probabilities, same, threshold=0.7)).tolist() == [[-1, -1, 0]]
    assert numbers(decode(np.log(probabilities), same, threshold=0.55, activation="softmax")).tolist() == [[-1, 0, 0]]
    logits = np.log(probabilities / (1 - probabilities))
    assert numbers(decode(logits - 0.1, same, activation="sigmoid")).tolist() == [[-1, 0, 0]]


def test_scores_that_are_not_numbers_are_no_class() -> None:
    scores = np.full((1, 3, 2, 3), np.nan, np.float32)
    assert decode(scores, threshold=0.1).classes == ()
    decode(scores)


def test_another_number_of_classes_is_said() -> None:
    with pytest.raises(ValueError, match="output scores has 3 classes, not 21"):
        decode(np.zeros((1, 3, 2, 3), np.float32), count=21)
