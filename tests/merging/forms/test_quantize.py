"""Tests of quantisation: codes in range, errors that fall with more bits, and the same bits wherever they are read."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gemel.merging.forms.quantize import (
    BITS,
    coded_bytes,
    low_rank_error,
    materialize,
    quantize_kernel,
    relative_error,
)

LARGEST = {1: 1, 2: 1, 4: 7, 8: 127}


def kernel(seed: int = 0, *shape: int) -> torch.Tensor:
    """Return a random kernel, [8, 4, 3, 3] by default."""
    return torch.randn(shape or (8, 4, 3, 3), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", BITS)
def test_codes_are_integers_in_range(bits: int) -> None:
    coded = quantize_kernel(kernel(), bits)
    assert coded.codes.dtype == torch.int8
    assert coded.scale.shape == (8,)
    assert int(coded.codes.abs().max()) == LARGEST[bits]
    if bits == 1:
        assert (coded.codes != 0).all()


def test_more_bits_leave_less_error() -> None:
    errors = [relative_error(materialize(quantize_kernel(kernel(), bits)), kernel()) for bits in BITS]
    # Of a normal distribution, signs leave 0.60, three levels 0.44, 15 levels about 0.1 and 255 levels below 0.01.
    assert errors == sorted(errors, reverse=True)
    assert errors[0] < 0.65
    assert errors[1] < 0.46
    assert errors[2] < 0.13
    assert errors[3] < 0.01


def test_an_outlier_is_clipped_where_that_leaves_less_error() -> None:
    values = kernel(0, 1, 1000)
    values[0, 0] = 20.0
    coded = quantize_kernel(values, 4)
    assert float(coded.scale[0]) * 7 < 20
    plain = (values / (20 / 7)).round() * (20 / 7)
    assert relative_error(materialize(coded), values) < relative_error(plain, values)


def test_channels_have_scales_of_their_own() -> None:
    values = kernel() * torch.logspace(-3, 3, 8).view(-1, 1, 1, 1)
    for bits in BITS:
        found = materialize(quantize_kernel(values, bits))
        alone = [relative_error(each, value) for each, value in zip(found, values, strict=True)]
        assert max(alone) < 0.75


@pytest.mark.parametrize("bits", BITS)
def test_a_channel_of_zeros_stays_zero(bits: int) -> None:
    values = kernel()
    values[3] = 0
    assert (materialize(quantize_kernel(values, bits))[3] == 0).all()


def test_important_elements_have_less_error() -> None:
    values, importance = kernel(0, 4, 64), torch.ones(64)
    importance[:8] = 1000
    plain, weighted = (materialize(quantize_kernel(values, 2, each)) for each in (None, importance))
    assert relative_error(weighted, values, importance) < relative_error(plain, values, importance)


@pytest.mark.parametrize("bits", BITS)
def test_materialized_values_are_rounded_after_every_operation(bits: int) -> None:
    base, values = kernel(1), kernel(2) * 0.01
    coded = quantize_kernel(values, bits)
    product = coded.codes.numpy().astype(np.float32) * coded.scale.numpy().reshape(-1, 1, 1, 1)
    assert product.dtype == np.float32
    assert np.array_equal(materialize(coded, base).numpy(), base.numpy() + product)
    assert np.array_equal(materialize(coded).numpy(), product)


def test_bytes_count_codes_and_scales() -> None:
    assert [coded_bytes((8, 4, 3, 3), bits) for bits in (0, *BITS)] == [0, 36 + 32, 72 + 32, 144 + 32, 288 + 32]
    assert coded_bytes((1, 3), 2) == 1 + 4


def test_low_rank_is_exact_for_a_matrix_of_that_rank() -> None:
    values = kernel(0, 32, 2) @ kernel(1, 2, 48)
    assert low_rank_error(values, 4 * 2 * (32 + 48)) < 1e-6
    assert low_rank_error(values, 4 * (32 + 48)) > 0.1
    assert low_rank_error(values, 10) == pytest.approx(1)
    assert low_rank_error(values * 0, 10) == 0
