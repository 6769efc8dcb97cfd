"""Costs of forms per layer: bytes, and the error that each number of bits leaves, found without data or training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..layers.layers import Layer
from ..layers.sharing import Use
from .fine_tunes import FineTunes, Weights
from .form_map import Form, FormMap, can_have_form
from .quantize import BITS, Base, coded_bytes, low_rank_error, materialize, quantize_kernel, relative_error

__all__ = ["LayerCost", "difference_costs", "own_costs", "uniform_forms"]


@dataclass(frozen=True)
class LayerCost:
    """Errors of the forms that one weight can have."""

    use: Use
    shape: tuple[int, ...]
    base: str | None
    """Name of the base that the weight differs from; None for codes of the weight itself."""
    errors: Mapping[int, float]
    """Bits -> norm of the weight's error divided by the weight's norm; 0 bits stand for the base alone."""
    base_bits: int | None = None
    """Bits of one code of the base; None for a float32 base, and without a base."""
    low_rank: float | None = None
    """Error, as in ``errors``, of float32 factors of low rank that take the bytes of 2 bits; None if not measured."""

    def bytes(self, bits: int) -> int:
        """Return the bytes of the weight's codes and scales, without the base."""
        return coded_bytes(self.shape, bits)

    def form(self, bits: int) -> Form:
        """Return the form with some bits, but with 0 bits for a weight that equals its base."""
        return Form(0 if self.base is not None and not self.errors[0] else bits, self.base, self.base_bits)

    @property
    def base_bytes(self) -> int:
        """Bytes of the base, which several weights have in common; 0 without a base."""
        if self.base is None:
            return 0
        return 4 * math.prod(self.shape) if self.base_bits is None else coded_bytes(self.shape, self.base_bits)


def difference_costs(
    family: FineTunes, layers: Sequence[Layer], state: Weights, *, low_rank: bool = False
) -> list[LayerCost]:
    """Return the costs of the differences of one member of a family, in the order in which its layers run.

    Args:
        family: the family.
        layers: layers of the member.
        state: weights of the member.
        low_rank: whether to measure the error of low rank, too.
    """
    found = []
    for layer in layers:
        use = Use(layer.model, layer.parameter)
        if use in family.base_of:
            key = family.base_of[use]
            found.append(_cost(use, state[layer.parameter], key, family.bases[key], low_rank=low_rank))
    return found


def own_costs(layers: Sequence[Layer], state: Weights, counts: Sequence[int] = BITS) -> list[LayerCost]:
    """Return the costs of codes for a model's own weights, heads included, in the order in which its layers run.

    Weights that are not finite are left out.

    Args:
        layers: layers of the model.
        state: weights of the model.
        counts: numbers of bits to measure.
    """
    return [
        _cost(Use(layer.model, layer.parameter), state[layer.parameter], None, None, counts)
        for layer in layers
        if can_have_form(layer) and bool(state[layer.parameter].isfinite().all())
    ]


def _cost(
    use: Use,
    weight: Tensor,
    key: str | None,
    base: Base | None,
    counts: Sequence[int] = BITS,
    *,
    low_rank: bool = False,
) -> LayerCost:
    """Return the costs of one weight."""
    start = None if base is None else base.kernel
    values = weight if start is None else weight - start
    errors = {} if start is None else {0: relative_error(start, weight)}
    for bits in counts:
        errors[bits] = relative_error(materialize(quantize_kernel(values, bits), start), weight)
    rank = None
    if low_rank:
        norm = float(torch.linalg.vector_norm(weight.double()))
        part = float(torch.linalg.vector_norm(values.double())) / norm if norm else 0.0
        rank = part * low_rank_error(values, coded_bytes(tuple(weight.shape), 2))
    return LayerCost(use, tuple(weight.shape), key, errors, None if base is None else base.bits, rank)


def uniform_forms(costs: Sequence[LayerCost], bits: int) -> FormMap:
    """Return the form map in which all weights have the same number of bits (0 where a weight equals its base)."""
    return FormMap().joined({cost.use: cost.form(bits) for cost in costs})
