"""Compressed run-length encoding of masks, byte for byte as COCO's tools (pycocotools.mask) write it.

A mask is read column by column. Counts are the lengths of its runs: first of pixels outside the mask (0 if the first
pixel is inside), then of pixels inside, and so on alternately. From the fourth count on, the difference to
the count two places before is written. Every number becomes digits of 5 bits, the lowest first: a character is
chr(48 + digit), plus 32 if more digits follow. The highest bit of the last digit is the sign.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["class_map", "common_pixels", "encode_classes", "encode_mask", "mask_columns", "mask_counts"]

_BITS = 5
"""Number of bits of a count that one character of an encoded mask holds."""
_DIGITS = 7
"""Maximum number of characters of one encoded count: enough for 34 bits and a sign. COCO's counts have 32 bits."""
_LEAST, _MORE, _SIGN, _DIGIT = 48, 0x20, 0x10, 0x1F

_Places = NDArray[np.int64]
"""Array ``[K]`` of pixel numbers or run lengths in a mask, whose pixels are numbered column by column."""


def encode_mask(inside: NDArray[np.generic], size: tuple[int, int] | None = None, at: tuple[int, int] = (0, 0)) -> str:
    """Encode a mask: return the compressed lengths of its runs (counts).

    Args:
        inside: ``[h, w]``, not 0 inside the mask.
        size: (height, width) of the frame; None if ``inside`` covers all of it. Pixels beyond ``inside`` are outside
            the mask.
        at: row and column of the frame where ``inside`` begins. All of ``inside`` must lie in the frame.

    Raises:
        ValueError: ``inside`` has not two axes, or reaches beyond the frame.
    """
    if inside.ndim != 2:
        raise ValueError(f"a mask has two axes, got the shape {inside.shape}")
    (rows, columns), (top, left) = inside.shape, at
    height, width = size or inside.shape
    if min(top, left) < 0 or top + rows > height or left + columns > width:
        raise ValueError(f"a part of {rows} x {columns} at {at} reaches beyond a mask of {height} x {width}")
    if rows == 0 or columns == 0:
        return _compress(np.array([height * width], np.int64))
    # All columns in sequence, with a pixel outside before each and after the last, so that every run of a column begins
    # and ends with a change. Changes are then alternately starts and ends.
    flat = np.zeros(columns * (rows + 1) + 1, np.uint8)
    flat[1:].reshape(columns, rows + 1)[:, :-1] = _turned(np.asarray(inside != 0).view(np.uint8))
    column, row = np.divmod(np.flatnonzero(flat[1:] != flat[:-1]), rows + 1)
    places = (column + left) * height + (row + top)
    starts, ends = places[::2], places[1::2]
    # A run that reaches the bottom of a column goes on where the next column begins inside.
    apart = starts[1:] != ends[:-1]
    starts, ends = starts[np.append(True, apart)[: len(starts)]], ends[np.append(apart, True)[: len(ends)]]
    return _compress(_counts(starts, ends, height * width))


def encode_classes(numbers: NDArray[np.int16]) -> dict[int, str]:
    """Encode a map of class numbers ``[h, w]`` as one mask per number: class number -> compressed counts of the mask.

    The lowest number comes first.
    """
    flat = _turned(numbers).reshape(-1)
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    starts = np.append(0, changes)[: flat.size].astype(np.int64)
    ends = np.append(starts[1:], flat.size)[: len(starts)]
    values = flat[starts]
    return {
        int(value): _compress(_counts(starts[values == value], ends[values == value], flat.size))
        for value in np.unique(values)
    }


def mask_counts(counts: str, size: tuple[int, int]) -> _Places:
    """Decode the compressed counts of a mask into its run lengths, ``[K]``, alternately outside and inside the mask.

    Args:
        counts: compressed counts of the mask.
        size: (height, width) of the mask.

    Raises:
        ValueError: the counts are damaged, or do not cover the mask.
    """
    digits = np.frombuffer(counts.encode(), np.uint8).astype(np.int64) - _LEAST
    last = (digits & _MORE) == 0
    if not len(digits) or digits.min() < 0 or digits.max() > _MORE + _DIGIT or not last[-1]:
        raise ValueError("the counts of a mask are damaged")
    ends = np.flatnonzero(last)
    starts = np.append(0, ends[:-1] + 1)
    if (ends - starts).max() >= _DIGITS:
        raise ValueError("the counts of a mask are damaged: a number is too large")
    shifts = (np.arange(len(digits)) - np.repeat(starts, ends - starts + 1)) * _BITS
    numbers = np.add.reduceat((digits & _DIGIT) << shifts, starts)
    numbers -= np.where(digits[ends] & _SIGN, 1 << (shifts[ends] + _BITS), 0)
    # The first three counts are written as they are, later ones as differences to the count two places before.
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    if numbers.min() < 0 or numbers.sum() != size[0] * size[1]:
        raise ValueError(f"the counts of a mask do not cover {size[0]} x {size[1]} pixels")
    return numbers


def mask_columns(counts: str, size: tuple[int, int]) -> tuple[int, NDArray[np.bool_]]:
    """Return the columns that an encoded mask touches: number of the first, and ``[height, columns]``, true inside.

    Args:
        counts: compressed counts of the mask.
        size: (height, width) of the mask.

    Raises:
        ValueError: the counts are damaged, or do not cover the mask.
    """
    height, _ = size
    runs = mask_counts(counts, size)
    if runs[1::2].sum() == 0:
        return 0, np.zeros((height, 0), np.bool_)
    # Runs of 0 pixels are allowed; the first and last pixel inside belong to longer ones.
    ends = np.cumsum(runs)
    full = np.flatnonzero(runs[1::2]) * 2 + 1
    first, past = int(ends[full[0]] - runs[full[0]]), int(ends[full[-1]])
    left, right = first // height, -(-past // height)
    edges = np.clip(np.append(0, ends), left * height, right * height)
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, np.diff(edges))
    return left, _turned(flat.view(np.uint8).reshape(right - left, height)).view(np.bool_)


def class_map(masks: Sequence[str], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return for each pixel the number of the mask that covers the pixel, ``[height, width]``: from 1, 0 for no mask.

    Args:
        masks: compressed counts of at most 255 masks. Where masks overlap, a pixel may count as outside all of them.
        size: (height, width) of all masks.

    Raises:
        ValueError: the counts are damaged, or do not cover the masks.
    """
    runs = [mask_counts(counts, size) for counts in masks]
    edges = [np.cumsum(each) for each in runs]
    starts = np.concatenate([each[: len(each) // 2 * 2 : 2] for each in edges] or [np.empty(0, np.int64)])
    ends = np.concatenate([each[1::2] for each in edges] or [np.empty(0, np.int64)])
    order = np.argsort(starts, kind="stable")
    owners = np.repeat(np.arange(1, len(runs) + 1), [len(each) // 2 for each in runs])[order]
    starts = starts[order]
    ends = np.minimum(ends[order], np.append(starts[1:], size[0] * size[1]))
    # Alternately the gaps between the runs of all masks, and the runs themselves.
    bounds = np.empty(2 * len(starts) + 1, np.int64)
    bounds[:-1:2], bounds[1::2], bounds[-1] = starts, ends, size[0] * size[1]
    values = np.zeros(len(bounds), np.uint8)
    values[1::2] = owners
    flat = np.repeat(values, np.diff(bounds, prepend=0))
    return _turned(flat.reshape(size[1], size[0]))


def common_pixels(one: str, other: str, size: tuple[int, int]) -> int:
    """Return the number of pixels that two encoded masks of the same size have in common.

    Args:
        one, other: compressed counts of the masks.
        size: (height, width) of both masks.

    Raises:
        ValueError: the counts are damaged, or do not cover the masks.
    """
    runs, others = mask_counts(one, size), mask_counts(other, size)
    inside = np.cumsum(np.where(np.arange(len(runs)) % 2, runs, 0))
    # Number of pixels of one mask up to each pixel where a run of the other mask begins or ends.
    upto = np.interp(np.cumsum(others), np.append(0, np.cumsum(runs)), np.append(0, inside))
    return int(np.diff(upto)[::2].sum())


def _turned(plane: NDArray[Any]) -> NDArray[Any]:
    """Transpose a two-dimensional array that is not empty, into contiguous memory, several times as fast as NumPy."""
    return np.asarray(cv2.transpose(plane))


def _counts(starts: _Places, ends: _Places, total: int) -> _Places:
    """Return the run lengths of a mask, alternately outside and inside, given the starts and ends of its inside runs.

    The last run is inside if the mask reaches the last pixel.
    """
    edges = np.empty(2 * len(starts) + 1, np.int64)
    edges[:-1:2], edges[1::2], edges[-1] = starts, ends, total
    counts = np.diff(edges, prepend=0)
    return counts[:-1] if len(starts) and ends[-1] == total else counts


def _compress(counts: _Places) -> str:
    numbers = counts.copy()
    numbers[3:] -= counts[1:-2]
    characters = np.zeros((len(numbers), _DIGITS), np.uint8)
    used = np.ones(len(numbers), np.bool_)
    for place in range(_DIGITS):
        digits = numbers & _DIGIT
        numbers >>= _BITS
        more = np.where(digits & _SIGN, numbers != -1, numbers != 0)
        characters[used, place] = (digits + _LEAST + np.where(more, _MORE, 0))[used]
        used &= more
    # Characters begin at 48, so a zero marks a place without a digit.
    flat = characters.reshape(-1)
    return bytes(flat[flat != 0]).decode("ascii")
