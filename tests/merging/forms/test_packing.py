"""Tests of packed codes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemel.merging.forms.packing import pack_codes, unpack_codes

LARGEST = {1: 1, 2: 1, 4: 7, 8: 127}


@given(st.sampled_from([1, 2, 4, 8]), st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 7))
def test_codes_survive_packing(bits: int, seed: int, rows: int, columns: int) -> None:
    rng = np.random.default_rng(seed)
    codes = rng.integers(-LARGEST[bits], LARGEST[bits] + 1, (rows, columns)).astype(np.int8)
    if bits == 1:
        codes[codes == 0] = 1
    packed = pack_codes(codes, bits)
    assert packed.dtype == np.uint8
    assert packed.size == -(-codes.size * bits // 8)
    assert np.array_equal(unpack_codes(packed, bits, codes.shape), codes)


@pytest.mark.parametrize(
    ("bits", "codes", "expected"),
    [(1, [1, -1, 1], 0b101), (2, [1, -1, 0, 1], 0b01_00_11_01), (4, [7, -7], 0b1001_0111), (8, [-1], 0xFF)],
)
def test_the_first_code_is_in_the_lowest_bits(bits: int, codes: list[int], expected: int) -> None:
    assert pack_codes(np.array(codes, np.int8), bits).tolist() == [expected]
