"""Codes: kernels written as small integers times a scale, perhaps beside a base, and the arithmetic that restores them.

``W = base + float32(codes) * scale``, and ``W * gain`` where a layer has a gain of its own. A base may be codes, too:
``base = float32(base_codes) * base_scale``. All values are float32, and every operation is rounded by itself. So a
kernel has the same bits wherever it is restored: in NumPy, in PyTorch and in ONNX nodes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BASE_BITS",
    "Bits",
    "code_table",
    "indexed_codes",
    "pack_codes",
    "packed_bytes",
    "restore",
    "unpack_codes",
    "wider_bits",
]

Bits = Literal[1, 2, 4, 8]
"""Number of bits of one code. 1: -1 and 1. 2: -1 to 1. 4: -7 to 7. 8: -127 to 127."""

BASE_BITS: Bits = 8
"""Number of bits of one code of a base that a merge writes as codes."""

_WIDTHS: tuple[Bits, ...] = (1, 2, 4, 8)
_CHUNK = 1 << 16
"""Number of elements of a kernel that are restored at once, so that they stay in the CPU's cache between two steps."""
_RUN = 128
"""Number of neighbouring elements that one step of a multiplication by a scale should cover at least, if it can."""
_F = NDArray[np.float32]


def packed_bytes(count: int, bits: Bits) -> int:
    """Return the number of bytes that ``count`` codes take."""
    return -(-count * bits // 8)


def pack_codes(codes: NDArray[Any], bits: Bits) -> NDArray[np.uint8]:
    """Pack codes into bytes, in C order, the first code in the lowest bits of its byte.

    Args:
        codes: integers of any shape, all of which have ``bits`` bits.
        bits: number of bits of one code.

    Raises:
        ValueError: a value is no code of ``bits`` bits.
    """
    flat = np.asarray(codes).reshape(-1)
    allowed = np.abs(flat) == 1 if bits == 1 else np.abs(flat) <= _largest(bits)
    if not allowed.all():
        raise ValueError(f"{flat[~allowed][0]} is no code of {bits} bits")
    small = (flat > 0).astype(np.uint8) if bits == 1 else flat.astype(np.int8).view(np.uint8) & np.uint8(2**bits - 1)
    each = 8 // bits
    padded = np.zeros(packed_bytes(flat.size, bits) * each, np.uint8)
    padded[: flat.size] = small
    shifted = padded.reshape(-1, each) << (np.arange(each, dtype=np.uint8) * np.uint8(bits))
    packed: NDArray[np.uint8] = np.bitwise_or.reduce(shifted, axis=1).astype(np.uint8)
    return packed


def unpack_codes(packed: NDArray[np.uint8], bits: Bits, count: int) -> NDArray[np.int8]:
    """Return ``count`` codes that :func:`pack_codes` packed, as a vector.

    Raises:
        ValueError: there are more or fewer bytes, or a byte holds something else than codes.
    """
    if packed.size != packed_bytes(count, bits):
        raise ValueError(f"{packed.size} bytes; {packed_bytes(count, bits)} hold {count} codes of {bits} bits")
    codes = np.take(_integers(bits), packed.reshape(-1), axis=0).reshape(-1)
    found: NDArray[np.int8] = codes[:count]
    if (found < -_largest(bits)).any():
        raise ValueError(f"{found.min()} is no code of {bits} bits")
    return found


def indexed_codes(
    tensors: Mapping[str, NDArray[Any]], index: int, bits: Bits, shape: tuple[int, ...]
) -> tuple[NDArray[np.int8], _F]:
    """Return codes in a shape, and the scale of each channel, from the tensors of a merge's file of forms.

    Args:
        tensors: tensors of the file; ``index.codes`` and ``index.scale`` are read.
        index: number of the codes in the file.
        bits: number of bits of one code in the file.
        shape: shape of the kernel, output channels first.

    Raises:
        ValueError: a tensor is missing or does not fit; the message names it.
    """
    try:
        packed, scale = (tensors[f"{index}.{kind}"] for kind in ("codes", "scale"))
    except KeyError as error:
        raise ValueError(f"tensor {error} is missing") from error
    try:
        codes = unpack_codes(packed.astype(np.uint8, casting="safe"), bits, math.prod(shape))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{index}.codes: {error}") from error
    channels = shape[0] if shape else 1
    if scale.dtype != np.float32 or scale.size != channels or not np.isfinite(scale).all():
        raise ValueError(f"{index}.scale: {channels} finite float32 values are expected")
    return codes.reshape(shape), scale.reshape(-1)


def wider_bits(bits: Bits, count: int) -> Bits:
    """Return the smallest number of bits, at least ``bits``, in which ``count`` codes fill whole bytes.

    One bit has no code for zero, so codes of one bit become codes of at least two.

    >>> wider_bits(2, 12), wider_bits(2, 6), wider_bits(1, 8), wider_bits(4, 3)
    (2, 4, 1, 8)
    """
    return next(each for each in _WIDTHS if each >= bits and count * each % 8 == 0)


@cache
def code_table(bits: Bits) -> _F:
    """Return byte -> codes in the byte, ``[256, 8 / bits]`` float32, read-only."""
    table = _integers(bits).astype(np.float32)
    table.flags.writeable = False
    return table


def restore(
    out: _F,
    codes: NDArray[np.uint8],
    scale: _F,
    bits: Bits,
    *,
    base: NDArray[Any] | None = None,
    base_scale: _F | None = None,
    base_bits: Bits | None = None,
    gain: _F | None = None,
    block: int = 1,
) -> None:
    """Write the kernel ``(base + codes * scale) * gain`` into an array.

    Channels lie in ``out`` one after the other, or interleaved in blocks: ``out`` is then ``[blocks, rows, block]``,
    and the channel of an element is ``block * (its block) + (its last index)``.

    Args:
        out: contiguous array to fill.
        codes: packed codes, in the order of ``out``.
        scale: factor of each channel's codes.
        bits: number of bits of one code.
        base: float32 array with the shape of ``out``, or packed codes in the order of ``out`` if ``base_bits`` is
            given; zeros when left out.
        base_scale: factor of each channel's codes in the base; left out for a float32 base.
        base_bits: number of bits of one code of the base; left out for a float32 base.
        gain: factor of each channel's elements; ones when left out.
        block: number of channels that are interleaved.
    """
    flat = out.reshape(-1)
    blocks = scale.size // block
    inner, rows, repeats = block, flat.size // (blocks * block), 1
    if block == 1:
        # One factor for all elements of a row.
        inner, rows = rows, 1
    else:
        # Short rows of factors are repeated: NumPy handles one row at a time.
        repeats = next(count for count in range(min(rows, max(1, _RUN // block)), 0, -1) if rows % count == 0)
        inner, rows = block * repeats, rows // repeats

    def spread(factors: _F) -> _F:
        """Return factors of channels in a shape that broadcasts to ``[blocks, rows, inner]``."""
        return _repeated(factors.reshape(blocks, 1, block), repeats)

    shape = (blocks, rows, inner)
    target = flat.reshape(shape)
    whole = max(1, _CHUNK // max(1, rows * inner))
    part = rows if rows * inner <= _CHUNK else max(1, _CHUNK // inner)
    # Chunks that begin inside a byte could not be decoded one by one.
    each = 8 // min(bits, base_bits or bits)
    whole, part = _whole_bytes(whole, rows * inner, each), _whole_bytes(part, inner, each)
    if part < rows and rows * inner % each:
        whole, part = blocks, rows
    scales, gains = spread(scale), None if gain is None else spread(gain)
    coded = None
    if base_bits is not None:
        assert base is not None
        assert base_scale is not None
        coded = base, base_bits, spread(base_scale), np.empty(min(flat.size, whole * part * inner), np.float32)
    elif base is not None:
        base = base.reshape(shape)
    for first in range(0, blocks, whole):
        channels = slice(first, first + whole)
        for row in range(0, rows, part):
            chunk, begin = target[channels, row : row + part], (first * rows + row) * inner
            _multiply(chunk, codes, bits, scales[channels], begin)
            if coded is not None:
                base_codes, width, factors, scratch = coded
                values = scratch[: chunk.size].reshape(chunk.shape)
                _multiply(values, base_codes, width, factors[channels], begin)
                np.add(values, chunk, out=chunk)
            elif base is not None:
                np.add(base[channels, row : row + part], chunk, out=chunk)
            if gains is not None:
                np.multiply(chunk, gains[channels], out=chunk)


def _repeated(factors: _F, repeats: int) -> _F:
    """Return factors ``[blocks, 1, block]`` with every block repeated along the last axis."""
    blocks, _, block = factors.shape
    if repeats == 1:
        return factors
    # As np.tile, in a quarter of the time for small arrays.
    made = np.empty((blocks, repeats, block), np.float32)
    made[...] = factors
    return made.reshape(blocks, 1, repeats * block)


def _whole_bytes(count: int, size: int, each: int) -> int:
    """Return ``count`` rounded up so that as many rows of ``size`` codes fill whole bytes of ``each`` codes."""
    step = each // math.gcd(each, max(1, size))
    return -(-count // step) * step


def _multiply(out: _F, codes: NDArray[np.uint8], bits: Bits, factors: _F, begin: int) -> None:
    """Write codes times their factors into a contiguous array.

    Args:
        out: array to fill.
        codes: packed codes.
        bits: number of bits of one code.
        factors: factors, in a shape that broadcasts to that of ``out``.
        begin: number of the first code to write, which must be the first in its byte.
    """
    _decode(out.reshape(-1), codes[begin * bits // 8 :], bits)
    np.multiply(out, factors, out=out)


def _decode(out: _F, codes: NDArray[np.uint8], bits: Bits) -> None:
    """Write the first codes of packed codes into a vector, as many as it has elements."""
    if bits == 8:
        # Without a table, in a seventh of the time.
        np.copyto(out, codes[: out.size].view(np.int8))
        return
    table, each = code_table(bits), 8 // bits
    whole = out.size // each
    # With mode "raise", NumPy would fill a copy of the output first.
    np.take(table, codes[:whole], axis=0, out=out[: whole * each].reshape(whole, each), mode="clip")
    if left := out.size - whole * each:
        out[whole * each :] = table[codes[whole], :left]


def _largest(bits: Bits) -> int:
    return max(1, (1 << bits - 1) - 1)


@cache
def _integers(bits: Bits) -> NDArray[np.int8]:
    """Return byte -> codes in the byte, ``[256, 8 / bits]`` int8, with a value below all codes for what is no code."""
    shifts = np.arange(0, 8, bits)
    values = np.arange(256)[:, None] >> shifts & (2**bits - 1)
    if bits == 1:
        return (2 * values - 1).astype(np.int8)
    half = 1 << bits - 1
    return ((values + half) % (2 * half) - half).astype(np.int8)
