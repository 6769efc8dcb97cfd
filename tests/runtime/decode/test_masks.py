"""Run-length encoding of masks equals pycocotools' byte for byte."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from gemel.runtime.decode.masks import class_map, common_pixels, encode_classes, encode_mask, mask_columns, mask_counts
from gemel.runtime.decode.results import Mask

SHAPES = st.tuples(st.integers(1, 12), st.integers(1, 12))
MASKS = SHAPES.flatmap(lambda shape: arrays.arrays(np.bool_, shape))


def coco() -> Any:
    return pytest.importorskip("pycocotools.mask")


def blobs(height: int, width: int, seed: int) -> NDArray[np.bool_]:
    """Return a mask with long runs, as those of objects: a few ellipses."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    inside = np.zeros((height, width), np.bool_)
    for _ in range(4):
        top, left, tall, wide = rng.uniform(size=4) * [height, width, height / 3, width / 3] + [0, 0, 2, 2]
        inside |= ((y - top) / tall) ** 2 + ((x - left) / wide) ** 2 < 1
    return inside


def assert_as_coco(inside: NDArray[np.bool_]) -> None:
    expected = coco().encode(np.asfortranarray(inside.astype(np.uint8)))
    mask = Mask.of(inside)
    assert list(mask.size) == expected["size"]
    assert mask.counts.encode() == expected["counts"]
    assert (mask.array() == inside).all()
    assert mask.area() == coco().area(expected) == inside.sum()


@given(MASKS)
def test_any_mask(inside: NDArray[np.bool_]) -> None:
    assert_as_coco(inside)


@pytest.mark.parametrize("size", [(144, 176), (1080, 1920), (1, 500), (500, 1), (7, 70_001)])
def test_large_masks(size: tuple[int, int]) -> None:
    assert_as_coco(blobs(*size, seed=1))
    assert_as_coco(np.random.default_rng(0).random(size) < 0.5)


@pytest.mark.parametrize("value", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (1080, 1920)])
def test_empty_and_full_masks(size: tuple[int, int], value: bool) -> None:
    assert_as_coco(np.full(size, value))


@given(MASKS, st.integers(0, 5), st.integers(0, 5), st.integers(0, 5), st.integers(0, 5))
def test_a_part_of_the_frame(part: NDArray[np.bool_], top: int, left: int, below: int, right: int) -> None:
    whole = np.pad(part, ((top, below), (left, right)))
    assert Mask.of(part, whole.shape, (top, left)) == Mask.of(whole)


def test_a_part_that_reaches_beyond_the_frame_is_refused() -> None:
    part = np.ones((3, 3), np.bool_)
    for at in ((-1, 0), (0, 3), (8, 0)):
        with pytest.raises(ValueError, match="reaches beyond a mask of 10 x 5"):
            encode_mask(part, (10, 5), at)
    with pytest.raises(ValueError, match="two axes"):
        encode_mask(part[None])


def test_the_columns_of_a_mask() -> None:
    inside = np.zeros((4, 9), np.bool_)
    inside[1:3, 3], inside[3, 5] = True, True
    left, part = mask_columns(encode_mask(inside), (4, 9))
    assert left == 3
    assert (part == inside[:, 3:6]).all()
    assert mask_columns(encode_mask(inside * False), (4, 9))[1].shape == (4, 0)


@given(SHAPES.flatmap(lambda shape: arrays.arrays(np.int16, shape, elements=st.integers(-1, 4))))
def test_a_map_of_class_numbers(numbers: NDArray[np.int16]) -> None:
    found = encode_classes(numbers)
    assert list(found) == sorted(set(numbers.reshape(-1).tolist()))
    assert found == {number: encode_mask(numbers == number) for number in found}


@given(SHAPES.flatmap(lambda shape: arrays.arrays(np.int16, shape, elements=st.integers(0, 4))))
def test_a_map_of_masks(numbers: NDArray[np.int16]) -> None:
    masks = [encode_mask(numbers == number) for number in range(1, 5)]
    assert (class_map(masks, numbers.shape) == numbers).all()


@given(st.data())
def test_a_map_of_masks_that_overlap(data: st.DataObject) -> None:
    shape = data.draw(SHAPES)
    masks = [data.draw(arrays.arrays(np.bool_, shape)) for _ in range(3)]
    found = class_map([encode_mask(each) for each in masks], shape)
    for number, each in enumerate(masks, 1):
        assert each[found == number].all()
    assert (class_map([], shape) == 0).all()


@given(st.data())
def test_common_pixels(data: st.DataObject) -> None:
    shape = data.draw(SHAPES)
    one, other = (data.draw(arrays.arrays(np.bool_, shape)) for _ in range(2))
    assert common_pixels(encode_mask(one), encode_mask(other), shape) == (one & other).sum()


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ("", "damaged"),
        ("\n", "damaged"),
        ("zzz", "damaged"),
        ("ü", "damaged"),
        ("P", "damaged"),  # the first digit says that more follow
        ("oooooooooo0", "too large"),
        ("5", "do not cover 4 x 4"),
        ("O1", "do not cover"),  # -1
        ("@@@@@@0", "do not cover"),
    ],
)
def test_damaged_counts(counts: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        mask_counts(counts, (4, 4))
