"""Forms in which a delta carries a tensor: as bytes that compress well, in blocks, so that memory stays bounded.

``plain``: the bytes of the elements, sorted by significance (all first bytes, all second bytes, ...). The exponents of
weights are alike, and their low bits are noise. ``bits``: the difference between the elements' bit patterns and those
of an old tensor, sorted in the same way; exact. ``steps``: a rounded change of an old float32 tensor, see
:mod:`.rounded_changes`: first all scales, then all steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .manifest import TensorSpec
from .rounded_changes import add_change, round_change

__all__ = ["MOST_CHANNELS", "TensorForm", "encode_tensor", "encoded_size", "fits_form", "restore_tensor"]

TensorForm = Literal["plain", "bits", "steps"]
MOST_CHANNELS = 1 << 20
"""Maximum number of channels of a tensor in the form ``steps``; their scales are held in memory."""
_BLOCK = 1 << 20
"""Bytes of a tensor that are encoded at once."""
_FLOAT = np.dtype(np.float32)

_Read = Callable[[int, int], bytes]
"""Function that returns bytes of a tensor: those from an offset in bytes, and how many."""


def fits_form(spec: TensorSpec, form: TensorForm, base: TensorSpec) -> bool:
    """Return whether a tensor can be carried as a change of another one of equal dtype and shape."""
    if (spec.dtype, spec.shape) != (base.dtype, base.shape) or not spec.length:
        return False
    if form == "bits":
        return np.dtype(spec.dtype).itemsize <= 8
    return spec.dtype == "float32" and len(spec.shape) > 1 and spec.shape[0] <= MOST_CHANNELS


def encoded_size(spec: TensorSpec, form: TensorForm) -> int:
    """Return the bytes that a tensor takes in a form, before compression."""
    return 4 * spec.shape[0] + spec.length // 4 if form == "steps" else spec.length


def encode_tensor(spec: TensorSpec, form: TensorForm, new: _Read, old: _Read | None = None) -> Iterator[bytes]:
    """Yield a tensor in a form.

    Args:
        spec: dtype, shape and length of the tensor.
        form: the form.
        new: function that reads the tensor.
        old: function that reads the old tensor, for the forms ``bits`` and ``steps``.
    """
    if form == "steps":
        assert old is not None
        arrays = [np.frombuffer(read(0, spec.length), np.float32).reshape(spec.shape) for read in (old, new)]
        steps, scale = round_change(*arrays)
        yield _planes(scale.astype("<f4").view(np.uint8), 4)
        flat = steps.reshape(-1).view(np.uint8)
        for begin in range(0, len(flat), _BLOCK):
            yield flat[begin : begin + _BLOCK].tobytes()
        return
    item = np.dtype(spec.dtype).itemsize
    for begin, size in _blocks(spec.length):
        data = np.frombuffer(new(begin, size), np.uint8)
        if form == "bits":
            assert old is not None
            data = _differences(data, np.frombuffer(old(begin, size), np.uint8), item)
        yield _planes(data, item)


def restore_tensor(
    spec: TensorSpec, form: TensorForm, read: Callable[[int], bytes], old: _Read | None = None
) -> Iterator[bytes]:
    """Yield the bytes of a tensor, given its form: the inverse of :func:`encode_tensor`.

    Args:
        spec: dtype, shape and length of the tensor.
        form: the form, which must fit the tensor, see :func:`fits_form`.
        read: function that returns the next bytes of the form, given how many.
        old: function that reads the old tensor, for the forms ``bits`` and ``steps``.
    """
    if form == "steps":
        assert old is not None
        channels = spec.shape[0]
        scale = np.frombuffer(_unplanes(read(4 * channels), 4), "<f4")
        each, done = spec.length // 4 // max(1, channels), 0
        for begin, size in _blocks(spec.length):
            count = size // 4
            steps = np.frombuffer(read(count), np.int8)
            before = np.frombuffer(old(begin, size), _FLOAT)
            yield add_change(before, steps, scale[np.arange(done, done + count) // each]).tobytes()
            done += count
        return
    item = np.dtype(spec.dtype).itemsize
    for begin, size in _blocks(spec.length):
        data = _unplanes(read(size), item)
        if form == "bits":
            assert old is not None
            data = _sums(np.frombuffer(data, np.uint8), np.frombuffer(old(begin, size), np.uint8), item)
        yield data


def _blocks(length: int) -> Iterator[tuple[int, int]]:
    """Yield the offset and size in bytes of each block of a tensor. Every element size divides a block."""
    for begin in range(0, length, _BLOCK):
        yield begin, min(_BLOCK, length - begin)


def _planes(data: NDArray[np.uint8], item: int) -> bytes:
    """Return the bytes of elements of ``item`` bytes, sorted by their place in the element."""
    return np.ascontiguousarray(data.reshape(-1, item).T).tobytes()


def _unplanes(data: bytes, item: int) -> bytes:
    return np.ascontiguousarray(np.frombuffer(data, np.uint8).reshape(item, -1).T).tobytes()


def _differences(new: NDArray[np.uint8], old: NDArray[np.uint8], item: int) -> NDArray[np.uint8]:
    """Return new minus old bit patterns, as integers whose size grows with the distance: 0, -1, 1, -2, 2, ..."""
    unsigned, signed = f"<u{item}", f"<i{item}"
    change = (new.view(unsigned) - old.view(unsigned)).view(signed)
    return ((change << 1) ^ (change >> (8 * item - 1))).view(np.uint8)


def _sums(changes: NDArray[np.uint8], old: NDArray[np.uint8], item: int) -> bytes:
    unsigned = f"<u{item}"
    folded = changes.view(unsigned)
    change = (folded >> 1) ^ (-(folded & 1).view(f"<i{item}")).view(unsigned)
    return bytes((old.view(unsigned) + change).tobytes())
