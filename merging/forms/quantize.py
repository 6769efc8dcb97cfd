"""Quantise a kernel, or its difference to a base, to codes of 1, 2, 4 or 8 bits with a scale per output channel.

Codes of 1 bit are signs with the mean absolute value as the scale, as in BitDelta (Liu et al., 2024), which keeps the
differences of fine-tuned language models so. Codes of 2 bits are ternary (Li, Zhang and Liu, "Ternary weight
networks", 2016), codes of 4 and 8 bits are symmetric. Where values are clipped is chosen by the error that remains, as
in OCTAV (Sakr et al., 2022). The scale is then the least-squares fit to the codes. DeltaZip (Yao et al., 2023) serves
fine-tuned models as differences of 2 and 4 bits from one base.

Low rank (:func:`low_rank_error`) is here for comparison only: at equal bytes it loses to a few bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from ...bundles.codes import Bits

__all__ = ["BITS", "Base", "Coded", "coded_bytes", "low_rank_error", "materialize", "quantize_kernel", "relative_error"]

BITS = (1, 2, 4, 8)
"""Numbers of bits that a code may have."""
_CLIPS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
"""Clipping thresholds to try, as fractions of a channel's largest absolute value."""
_FITS = 3
"""Number of times that codes and scale are fitted to each other after the best threshold is known."""


@dataclass(frozen=True)
class Coded:
    """Kernel, or difference to a base, as integer codes times a scale per output channel."""

    codes: Tensor
    """Codes, int8, in the shape of the kernel, output channels first."""
    scale: Tensor
    """Scale of each output channel, float32 ``[out]``."""
    bits: Bits
    """Bits of one code: 1 (-1 or 1), 2 (-1 to 1), 4 (-7 to 7) or 8 (-127 to 127)."""


@dataclass(frozen=True)
class Base:
    """Kernel that differences of several weights are added to."""

    kernel: Tensor
    """Values, float32 on the CPU: what the codes give, where there are codes."""
    coded: Coded | None = None
    """Codes and scales of the base; None for a float32 base."""

    @property
    def bits(self) -> Bits | None:
        """Bits of one code of the base; None for a float32 base."""
        return None if self.coded is None else self.coded.bits


def coded_bytes(shape: Sequence[int], bits: int) -> int:
    """Return the bytes of a kernel's packed codes and scales; 0 bits stand for no codes and no scales.

    >>> coded_bytes((64, 32, 3, 3), 2)
    4864
    """
    return -(-math.prod(shape) * bits // 8) + 4 * shape[0] if bits else 0


def quantize_kernel(values: Tensor, bits: int, importance: Tensor | None = None, near: Tensor | None = None) -> Coded:
    """Quantise a kernel, or its difference to a base, to the codes and scales with the least squared error found.

    Args:
        values: float32, output channels first.
        bits: bits of one code: 1, 2, 4 or 8.
        importance: weight of each element's squared error, in a shape that broadcasts to that of ``values``; all
            elements count alike if None. With the mean squares of a layer's inputs, the error of its outputs counts.
        near: scales of nearly the same values, ``[out]``, to start from; if None, clipping thresholds are tried.
    """
    rows = values.detach().reshape(len(values), -1).double()
    weight = torch.ones_like(rows)
    if importance is not None:
        weight = importance.to(rows).expand(values.shape).reshape(rows.shape)
    if bits == 1:
        codes = torch.where(rows < 0, -1.0, 1.0).to(rows)
        return _coded(codes, _fit(rows, codes, weight), bits, values)
    largest = 2 ** (bits - 1) - 1
    peak = rows.abs().amax(1, keepdim=True)
    best: tuple[Tensor, Tensor, Tensor] | None = None
    starts = [peak * (clip / largest) for clip in _CLIPS] if near is None else [near.to(rows).view(-1, 1)]
    for start in starts:
        best = _better(best, rows, start, weight, largest)
    assert best is not None
    for _ in range(_FITS):
        best = _better(best, rows, best[1], weight, largest)
    return _coded(best[0], best[1], bits, values)


def _better(
    best: tuple[Tensor, Tensor, Tensor] | None, rows: Tensor, scale: Tensor, weight: Tensor, largest: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes, scale and squared error of each row: those of a new scale where its error is less than before."""
    codes = (rows / scale.clamp_min(torch.finfo(torch.float32).tiny)).round().clamp(-largest, largest)
    scale = _fit(rows, codes, weight)
    error = (weight * (codes * scale - rows).square()).sum(1, keepdim=True)
    if best is None:
        return codes, scale, error
    less = error < best[2]
    return torch.where(less, codes, best[0]), torch.where(less, scale, best[1]), torch.where(less, error, best[2])


def _fit(rows: Tensor, codes: Tensor, weight: Tensor) -> Tensor:
    """Return the scale of each row that has the least weighted squared error for given codes; 0 if all codes are 0."""
    power = (weight * codes.square()).sum(1, keepdim=True)
    return (weight * codes * rows).sum(1, keepdim=True) / torch.where(power > 0, power, 1.0)


def _coded(codes: Tensor, scale: Tensor, bits: int, values: Tensor) -> Coded:
    """Return codes and scales of rows in the shape of a kernel."""
    return Coded(codes.to(torch.int8).reshape(values.shape), scale.float().flatten(), cast("Bits", bits))


def materialize(coded: Coded, base: Tensor | None = None) -> Tensor:
    """Return ``base + codes * scale`` in float32, or ``codes * scale`` without a base.

    Product and sum are rounded separately, so that every reader of the codes gets the same bits.

    Args:
        coded: codes and scales.
        base: float32, in the shape of the codes; None if the codes stand for the kernel itself.
    """
    scale = coded.scale.reshape(-1, *(1 for _ in coded.codes.shape[1:]))
    product = coded.codes.float() * scale
    return product if base is None else base + product


def relative_error(found: Tensor, wanted: Tensor, importance: Tensor | None = None) -> float:
    """Return the norm of ``found - wanted`` divided by the norm of ``wanted``; 1 if only the latter is 0.

    Args:
        found: values to judge.
        wanted: values to compare with.
        importance: weight of each element's square, in a shape that broadcasts; all count alike if None.
    """
    weight = torch.ones(()) if importance is None else importance
    error = float((weight * (found - wanted).double().square()).sum())
    whole = float((weight * wanted.double().square()).sum())
    return math.sqrt(error / whole) if whole else float(error > 0)


def low_rank_error(values: Tensor, size: int) -> float:
    """Return the relative error of the best float32 factors of a kernel, or difference, that take at most some bytes.

    Args:
        values: output channels first; the other dimensions are the columns of one matrix.
        size: largest size of both factors in bytes.
    """
    matrix = values.detach().reshape(len(values), -1).double()
    rank = size // (4 * sum(matrix.shape))
    squares = torch.linalg.svdvals(matrix).square()
    whole = float(squares.sum())
    return math.sqrt(float(squares[rank:].sum()) / whole) if whole else 0.0
