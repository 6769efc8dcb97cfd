"""Pack codes of 1, 2, 4 or 8 bits into bytes, and unpack them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["pack_codes", "unpack_codes"]


def pack_codes(codes: NDArray[np.int8], bits: int) -> NDArray[np.uint8]:
    """Pack codes into bytes, the first code in the lowest bits, in C order.

    A code of 1 bit is -1 (stored as 0) or 1. Codes of more bits are stored in two's complement. Unused bits of the last
    byte are 0.

    Args:
        codes: codes of any shape.
        bits: bits of one code: 1, 2, 4 or 8.

    >>> pack_codes(np.array([[1, -1], [0, 1]], np.int8), 2).tolist()
    [77]
    """
    flat = np.ascontiguousarray(codes).reshape(-1)
    if bits == 1:
        return np.packbits(flat > 0, bitorder="little")
    per = 8 // bits
    fields = np.zeros(-(-flat.size // per) * per, np.uint8)
    fields[: flat.size] = flat.view(np.uint8) & np.uint8((1 << bits) - 1)
    shifts = (np.arange(per) * bits).astype(np.uint8)
    packed: NDArray[np.uint8] = np.bitwise_or.reduce(fields.reshape(-1, per) << shifts, axis=1)
    return packed


def unpack_codes(packed: NDArray[np.uint8], bits: int, shape: Sequence[int]) -> NDArray[np.int8]:
    """Return the codes that :func:`pack_codes` packed, with the shape that they had.

    >>> unpack_codes(np.array([77], np.uint8), 2, (2, 2)).tolist()
    [[1, -1], [0, 1]]
    """
    count = int(np.prod(shape))
    fields: NDArray[Any]
    if bits == 1:
        fields = np.unpackbits(packed, count=count, bitorder="little").astype(np.int8) * 2 - 1
        return fields.astype(np.int8).reshape(shape)
    shifts = (np.arange(8 // bits) * bits).astype(np.uint8)
    fields = (packed[:, None] >> shifts).reshape(-1)[:count]
    # The highest bit of a field is its sign: move it to the top of a byte and shift back with the sign.
    signed: NDArray[np.int8] = (fields << np.uint8(8 - bits)).view(np.int8) >> np.int8(8 - bits)
    return signed.reshape(shape)
