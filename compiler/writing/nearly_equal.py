"""Search for tensors of different models that would be one shared tensor if they had been rounded alike."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..lowering.lower import Lowered
from ..passes.edit import constant, constant_id
from .sharing import StageParameter

__all__ = ["NearlyEqual", "find_nearly_equal"]

_RELATIVE = 1e-5
"""Largest difference of two elements, relative to the largest element of their tensors, that counts as rounding."""


@dataclass(frozen=True)
class NearlyEqual:
    """Tensors of different models that differ by no more than rounding."""

    tensors: int
    """Number of tensors that a bundle could leave out if tensors that differ by rounding only were equal."""
    bytes: int
    """Bytes of the tensors that a bundle could leave out if tensors that differ by rounding only were equal."""
    first: StageParameter
    """Model, stage and name of the largest tensor that differs from another model's tensor by rounding only."""
    twin: StageParameter
    """Model, stage and name of another model's tensor, from which tensor ``first`` differs by rounding only."""


@dataclass(frozen=True)
class _Tensor:
    """Distinct tensor of a workload: one initializer that holds it, its largest absolute value and its mean."""

    use: StageParameter
    value: ir.Value
    models: frozenset[str]
    peak: float
    mean: float

    def array(self) -> NDArray[Any]:
        """Return the tensor's values, converted to float64."""
        return constant(self.value).astype(np.float64)


def find_nearly_equal(models: Iterable[Lowered]) -> NearlyEqual | None:
    """Count the float32 tensors that different models would share if they were rounded alike; None if there are none.

    Exporters and converters fold BatchNorms in different ways, so that one backbone becomes files that differ in the
    last bits. Two tensors are compared element by element only if their largest values and means agree, as those of
    tensors that differ by rounding do.

    Args:
        models: models after the passes, before conversion to lower precision.
    """
    pairs = [pair for group in _by_shape(models) for pair in _pairs(group)]
    if not pairs:
        return None
    pairs.sort(key=lambda pair: -_size(pair[0]))
    first, twin = pairs[0]
    return NearlyEqual(len(pairs), sum(_size(each) for each, _ in pairs), first.use, twin.use)


def _by_shape(models: Iterable[Lowered]) -> Iterator[list[_Tensor]]:
    """Yield groups of distinct float32 tensors of equal shape that belong to several models."""
    uses: dict[str, list[StageParameter]] = defaultdict(list)
    values: dict[str, ir.Value] = {}
    for model in models:
        for stage, graph in model.stages.items():
            for name, value in graph.graph.initializers.items():
                if value.dtype == ir.DataType.FLOAT and value.const_value is not None and value.const_value.size > 1:
                    tensor = constant_id(value)
                    uses[tensor].append((model.name, stage, name))
                    values.setdefault(tensor, value)
    groups: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for tensor, value in values.items():
        groups[constant(value).shape].append(tensor)
    for members in groups.values():
        if len({use[0] for tensor in members for use in uses[tensor]}) > 1:
            yield [_described(uses[tensor], values[tensor]) for tensor in members]


def _described(uses: Sequence[StageParameter], value: ir.Value) -> _Tensor:
    array = constant(value)
    peak = max(float(array.max()), -float(array.min()))
    return _Tensor(uses[0], value, frozenset(use[0] for use in uses), peak, float(array.mean(dtype=np.float64)))


def _pairs(group: list[_Tensor]) -> Iterator[tuple[_Tensor, _Tensor]]:
    """Yield pairs of tensors of different models that differ by no more than rounding; each tensor comes first once."""
    group = sorted(group, key=lambda each: each.peak)
    for index, tensor in enumerate(group):
        for earlier in reversed(group[:index]):
            if tensor.peak - earlier.peak > _RELATIVE * tensor.peak:
                break
            if tensor.models.isdisjoint(earlier.models) and _nearly_equal(tensor, earlier):
                yield tensor, earlier
                break


def _nearly_equal(one: _Tensor, other: _Tensor) -> bool:
    allowed = _RELATIVE * max(one.peak, other.peak)
    if abs(one.mean - other.mean) > allowed:
        return False
    return bool(np.abs(one.array() - other.array()).max() <= allowed)


def _size(tensor: _Tensor) -> int:
    return int(constant(tensor.value).nbytes)
