"""Which layers cannot bear to be narrow: found by measurement, largest error first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Protocol

import onnx_ir as ir

__all__ = ["Candidate", "Measure", "settle"]


_MOST = 8
"""Kernels of a model that are left out between two looks at its accuracy: more would be left out for nothing."""


class Measure(Protocol):
    """What a form of a model is judged by; see :class:`gemel.calib.judge.Judge`."""

    def accuracies(self, graph: ir.Model) -> dict[str, float]: ...

    def error(self, graph: ir.Model) -> float: ...


@dataclass(frozen=True)
class Candidate:
    """A model that is to be narrower."""

    name: str
    layers: Mapping[str, str]
    """Of each layer that can be, the tensor that is its kernel, by hash."""
    narrow: Callable[[Set[str]], ir.Model]
    """Its graph with all of them narrow but the given."""
    judge: Measure
    floors: Mapping[str, float]
    """The accuracy that each of its queries must keep."""

    def without(self, kept: Set[str]) -> ir.Model:
        """Its graph, with the layers of these kernels in float32."""
        return self.narrow({layer for layer, tensor in self.layers.items() if tensor in kept})

    def ranked(self) -> list[str]:
        """Its kernels: first the one whose layers, if they alone are narrow, disturb the outputs most."""
        kernels = set(self.layers.values())
        errors = {kernel: self.judge.error(self.without(kernels - {kernel})) for kernel in kernels}
        return sorted(errors, key=lambda kernel: (-errors[kernel], kernel))


def settle(
    candidates: Sequence[Candidate],
    kept: Set[str],
    told: Callable[[str], None] = lambda what: None,
) -> tuple[dict[str, str], dict[str, dict[str, float]]]:
    """Leave kernels in float32 until every query keeps its floor: one a model, then two, four, and eight at a time.

    A kernel that several models share stays float32 in all of them, so that it stays one tensor.

    Args:
        candidates: the models.
        kept: kernels that are float32 anyway.
        told: what was found, in words.

    Returns:
        Of each kernel that is kept besides, the model that could not bear it; and the accuracies of every model's
        queries, which are below a floor only where all kernels are kept.
    """
    found: dict[str, str] = {}
    ranks: dict[str, list[str]] = {}
    accuracies: dict[str, dict[str, float]] = {}
    due, step = list(candidates), 1
    while due:
        for each in due:
            accuracies[each.name] = each.judge.accuracies(each.without(kept | found.keys()))
        given = set[str]()
        for each in candidates:
            short = {query: floor for query, floor in each.floors.items() if accuracies[each.name][query] < floor}
            if not short or kept | found.keys() >= set(each.layers.values()):
                continue
            query, floor = next(iter(short.items()))
            told(f"{query}: {accuracies[each.name][query]:.2%}, {floor:.2%} wanted")
            if each.name not in ranks:
                ranks[each.name] = each.ranked()
            left = [kernel for kernel in ranks[each.name] if kernel not in kept and kernel not in found]
            found |= dict.fromkeys(left[:step], each.name)
            given |= set(left[:step])
        due = [each for each in candidates if given.intersection(each.layers.values())]
        step = min(2 * step, _MOST)
    return found, accuracies
