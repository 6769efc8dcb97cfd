"""Proof that sharing survives compilation: tensors that were equal before the passes are equal after them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass

import onnx_ir as ir

from ...errors import SharingLostError
from ..lowering.lower import Lowered
from ..passes.edit import constant, constant_id

__all__ = ["SharedBytes", "StageParameter", "kernels", "prove"]

StageParameter = tuple[str, str, str]
"""Names of a model, a stage and an initializer of that stage."""


@dataclass(frozen=True)
class SharedBytes:
    """Bytes that sharing saves, as the proof that compilation lost no sharing counted them."""

    bytes: int
    """Bytes saved because equal tensors are stored once."""
    groups: int
    """Number of tensors that several initializers share."""
    waived: int
    """Bytes of sharing that are given up on purpose, because small kernels run faster with BatchNorm folded in."""
    first_waived: StageParameter | None = None
    """Model, stage and name of the first initializer whose sharing is given up on purpose; None if there is none."""


def kernels(models: Iterable[Lowered]) -> dict[str, list[StageParameter]]:
    """Return tensor id -> initializers that hold the tensor, for float32 tensors of two or more dimensions.

    Vectors are left out: BatchNorm parameters are folded or rewritten, and two of them are equal by accident (all ones)
    more often than by merging.
    """
    held: dict[str, list[StageParameter]] = defaultdict(list)
    for model in models:
        for stage, graph in model.stages.items():
            for name, value in graph.graph.initializers.items():
                if len(value.shape or ()) > 1 and value.dtype == ir.DataType.FLOAT:
                    held[constant_id(value)].append((model.name, stage, name))
    return held


def prove(models: Iterable[Lowered], before: Mapping[str, list[StageParameter]], waived: Set[str]) -> SharedBytes:
    """Prove that initializers that held one tensor before the passes still hold one tensor.

    Args:
        models: models after the graph passes.
        before: result of :func:`kernels` before the graph passes.
        waived: tensor ids that need not stay shared, see :func:`gemel.compiler.passes.choose_batch_norm`.

    Raises:
        SharingLostError: a tensor that two layers shared now differs between them; the message names both.
    """
    by_name = {model.name: model for model in models}
    saved = groups = given_up = 0
    first_waived: StageParameter | None = None
    for tensor, uses in before.items():
        if len(uses) < 2:
            continue
        values = [_find(by_name, use) for use in uses]
        now: dict[str, StageParameter] = {}
        for use, value in zip(uses, values, strict=True):
            now.setdefault(constant_id(value), use)
        size = constant(values[0]).nbytes
        if len(now) == 1:
            saved += size * (len(uses) - 1)
            groups += 1
        elif tensor in waived:
            given_up += size * (len(now) - 1)
            first_waived = first_waived or uses[0]
        else:
            first, second = list(now.values())[:2]
            raise SharingLostError(
                f"sharing lost in compilation: {first[2]} of {first[0]} and {second[2]} of {second[0]}"
                f" held one tensor of {size} bytes and now differ"
            )
    return SharedBytes(saved, groups, given_up, first_waived)


def _find(models: dict[str, Lowered], use: StageParameter) -> ir.Value:
    """Return an initializer of one stage of a model, by the names of all three.

    Raises:
        SharingLostError: the initializer no longer exists.
    """
    model, stage, name = use
    value = models[model].stages[stage].graph.initializers.get(name)
    if value is None:
        raise SharingLostError(f"sharing lost in compilation: {name} of {model} is gone")
    return value
