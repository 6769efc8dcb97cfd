"""Codes: packing, and the arithmetic that restores kernels from them."""

from __future__ import annotations

from typing import Any, cast

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from gemel.bundles import codes
from gemel.bundles.codes import Bits, code_table, pack_codes, packed_bytes, restore, unpack_codes, wider_bits

BITS: tuple[Bits, ...] = (1, 2, 4, 8)
LARGEST = {1: 1, 2: 1, 4: 7, 8: 127}


def some(bits: Bits, count: int, seed: int = 0) -> np.ndarray:
    """Return ``count`` random codes."""
    rng = np.random.default_rng(seed)
    return rng.choice([-1, 1], count) if bits == 1 else rng.integers(-LARGEST[bits], LARGEST[bits] + 1, count)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("count", [0, 1, 3, 8, 29])
def test_packed_codes_come_back(bits: Bits, count: int) -> None:
    found = some(bits, count)
    packed = pack_codes(found, bits)
    assert packed.dtype == np.uint8
    assert packed.size == packed_bytes(count, bits)
    np.testing.assert_array_equal(unpack_codes(packed, bits, count), found)


def test_the_first_code_has_the_lowest_bits() -> None:
    assert list(pack_codes(np.array([1, -1, 0, 1, -1]), 2)) == [0b01_00_11_01, 0b11]
    assert list(pack_codes(np.array([1, -1, -1, 1, -1, -1, -1, -1, 1]), 1)) == [0b1001, 1]
    assert list(pack_codes(np.array([-7, 7, -1]), 4)) == [0b0111_1001, 0b1111]
    assert list(pack_codes(np.array([[-127], [5]]), 8)) == [0x81, 5]


@pytest.mark.parametrize(("bits", "value"), [(1, 0), (2, 2), (2, -2), (4, -8), (8, 128), (8, -128)])
def test_what_is_no_code_is_refused(bits: Bits, value: int) -> None:
    with pytest.raises(ValueError, match=f"{value} is no code of {bits} bits"):
        pack_codes(np.array([1, value]), bits)


@pytest.mark.parametrize(("bits", "byte"), [(2, 0b10), (4, 0x80), (8, 0x80)])
def test_damaged_bytes_are_refused(bits: Bits, byte: int) -> None:
    with pytest.raises(ValueError, match=f"is no code of {bits} bits"):
        unpack_codes(np.array([byte], np.uint8), bits, 8 // bits)
    with pytest.raises(ValueError, match="2 bytes; 1 hold"):
        unpack_codes(np.zeros(2, np.uint8), bits, 8 // bits)


def test_codes_get_as_many_bits_as_fill_whole_bytes() -> None:
    cases: tuple[tuple[Bits, int], ...] = ((1, 8), (1, 4), (1, 2), (2, 6), (4, 6), (2, 7), (8, 7))
    assert [wider_bits(bits, count) for bits, count in cases] == [1, 2, 4, 4, 4, 8, 8]


def test_the_table_cannot_be_written_to() -> None:
    with pytest.raises(ValueError, match="read-only"):
        code_table(2)[0, 0] = 5


@settings(deadline=None, max_examples=150)
@given(
    bits=st.sampled_from(BITS),
    block=st.sampled_from([1, 4, 16]),
    blocks=st.integers(1, 5),
    rows=st.integers(1, 30),
    based=st.sampled_from([None, 32, *BITS]),
    gained=st.booleans(),
    chunk=st.sampled_from([1, 16, 100, 1 << 16]),
)
def test_kernels_are_restored_bit_for_bit(
    bits: Bits, block: int, blocks: int, rows: int, based: int | None, gained: bool, chunk: int
) -> None:
    rng = np.random.default_rng(rows)
    shape, channels = (blocks, rows, block), blocks * block
    found = some(bits, blocks * rows * block)
    scale, gain, base_scale = (rng.standard_normal(channels).astype(np.float32) for _ in range(3))
    kept: dict[str, Any] = {}
    expected = found.reshape(shape).astype(np.float32) * scale.reshape(blocks, 1, block)
    if based == 32:
        kept["base"] = base = rng.standard_normal(shape).astype(np.float32)
        expected = base + expected
    elif based is not None:
        base_codes = some(cast("Bits", based), blocks * rows * block, 1)
        kept |= {"base": pack_codes(base_codes, cast("Bits", based)), "base_scale": base_scale, "base_bits": based}
        expected = base_codes.reshape(shape).astype(np.float32) * base_scale.reshape(blocks, 1, block) + expected
    expected = expected * gain.reshape(blocks, 1, block) if gained else expected
    out = np.full(shape, np.nan, np.float32)
    with pytest.MonkeyPatch.context() as patch:
        # Kernels are restored in pieces; small ones show what goes wrong at their ends.
        patch.setattr(codes, "_CHUNK", chunk)
        patch.setattr(codes, "_RUN", min(chunk, 256))
        restore(
            *(out, pack_codes(found, bits), scale, bits),
            **kept,
            gain=gain if gained else None,
            block=block,
        )
    assert out.tobytes() == expected.tobytes()


def test_a_kernel_larger_than_a_piece() -> None:
    rng = np.random.default_rng(0)
    found, scale = some(2, 3 * 70_001), rng.random(3).astype(np.float32)
    out = np.empty((3, 70_001), np.float32)
    restore(out, pack_codes(found, 2), scale, 2)
    assert out.tobytes() == (found.reshape(out.shape).astype(np.float32) * scale[:, None]).tobytes()
