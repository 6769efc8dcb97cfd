"""Proof that sharing survives compilation: tensors that were equal before the passes are equal after them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass

import onnx_ir as ir

from ...bundles.blob import tensor_id
from ...errors import SharingLostError
from ..lowering.lower import Lowered
from ..passes.edit import constant

__all__ = ["SharedBytes", "StageParameter", "kernels", "prove"]

StageParameter = tuple[str, str, str]
"""Model, stage, parameter."""


@dataclass(frozen=True)
class SharedBytes:
    """What the proof found, in bytes: freed by sharing, and not shared on purpose."""

    bytes: int
    groups: int
    waived: int


def kernels(models: Iterable[Lowered]) -> dict[str, list[StageParameter]]:
    """Tensor id to everything that holds it, for parameters of two or more dimensions.

    Vectors are left out: BatchNorm parameters are folded or rewritten, and two of them are equal by accident
    (all ones) more often than by merging.
    """
    held: dict[str, list[StageParameter]] = defaultdict(list)
    for model in models:
        for stage, graph in model.stages.items():
            for name, value in graph.graph.initializers.items():
                if len(value.shape or ()) > 1 and value.dtype == ir.DataType.FLOAT:
                    held[tensor_id(constant(value))].append((model.name, stage, name))
    return held


def prove(models: Iterable[Lowered], before: Mapping[str, list[StageParameter]], waived: Set[str]) -> SharedBytes:
    """Compare with :func:`kernels` taken before the passes.

    Args:
        models: after the passes.
        before: tensor id to its uses, before them.
        waived: tensors that were given up on purpose, see :func:`gemel.compiler.passes.choose`.

    Raises:
        SharingLostError: naming the first layer whose copies differ now.
    """
    by_name = {model.name: model for model in models}
    saved = groups = given_up = 0
    for tensor, uses in before.items():
        if len(uses) < 2:
            continue
        values = [_find(by_name, use) for use in uses]
        now: dict[str, StageParameter] = {}
        for use, value in zip(uses, values, strict=True):
            now.setdefault(tensor_id(constant(value)), use)
        size = constant(values[0]).nbytes
        if len(now) == 1:
            saved += size * (len(uses) - 1)
            groups += 1
        elif tensor in waived:
            given_up += size * (len(now) - 1)
        else:
            first, second = list(now.values())[:2]
            raise SharingLostError(
                f"sharing lost in compilation: {first[2]} of {first[0]} and {second[2]} of {second[0]}"
                f" held one tensor of {size} bytes and now differ"
            )
    return SharedBytes(saved, groups, given_up)


def _find(models: dict[str, Lowered], use: StageParameter) -> ir.Value:
    model, stage, name = use
    value = models[model].stages[stage].graph.initializers.get(name)
    if value is None:
        raise SharingLostError(f"sharing lost in compilation: {name} of {model} is gone")
    return value
