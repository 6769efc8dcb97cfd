"""Search for the layers that must stay float32: measure accuracy, and leave out the most sensitive kernels first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Protocol

import onnx_ir as ir

__all__ = ["Candidate", "Measure", "settle"]


_MOST = 8
"""Kernels that a model leaves out between two measurements of accuracy; larger steps leave out kernels needlessly."""


class Measure(Protocol):
    """Measures of a converted graph; :class:`gemel.calib.judge.Judge` implements this protocol."""

    def accuracies(self, graph: ir.Model) -> dict[str, float]:
        """Return query -> accuracy from 0 to 1."""

    def error(self, graph: ir.Model) -> float:
        """Return how far outputs are from the float32 graph's."""


@dataclass(frozen=True)
class Candidate:
    """A model that is asked for in lower precision."""

    name: str
    layers: Mapping[str, str]
    """Layer that can be converted -> hash of the tensor that is its kernel."""
    convert: Callable[[Set[str]], ir.Model]
    """Function that returns the converted graph, with the given layers in float32."""
    judge: Measure
    floors: Mapping[str, float]
    """Query -> accuracy that the query must keep."""

    def without(self, kept: Set[str]) -> ir.Model:
        """Return the converted graph, with the layers of these kernels in float32."""
        return self.convert({layer for layer, tensor in self.layers.items() if tensor in kept})

    def ranked(self) -> list[str]:
        """Return the model's kernels, the most sensitive first.

        The sensitivity of a kernel is the error of the outputs when the layers of this kernel alone are converted.
        """
        kernels = set(self.layers.values())
        errors = {kernel: self.judge.error(self.without(kernels - {kernel})) for kernel in kernels}
        return sorted(errors, key=lambda kernel: (-errors[kernel], kernel))


def settle(
    candidates: Sequence[Candidate],
    kept: Set[str],
    progress: Callable[[str], None] = lambda what: None,
) -> tuple[dict[str, str], dict[str, dict[str, float]]]:
    """Leave kernels in float32 until every query keeps its floor.

    A model that falls short leaves out one kernel, then two, four, and eight at a time. A kernel that several models
    share stays float32 in all of them, so that it stays one tensor.

    Args:
        candidates: the models to convert.
        kept: kernels that are float32 in any case.
        progress: called with a line of text for each query that falls short.

    Returns:
        Kernel that is left in float32 in addition to ``kept`` -> the model that fell short; and model -> query ->
        accuracy. An accuracy is below its floor only if all kernels of its model are float32.
    """
    found: dict[str, str] = {}
    ranks: dict[str, list[str]] = {}
    accuracies: dict[str, dict[str, float]] = {}
    due, step = list(candidates), 1
    while due:
        for each in due:
            accuracies[each.name] = each.judge.accuracies(each.without(kept | found.keys()))
        added = set[str]()
        for each in candidates:
            short = {query: floor for query, floor in each.floors.items() if accuracies[each.name][query] < floor}
            if not short or kept | found.keys() >= set(each.layers.values()):
                continue
            query, floor = next(iter(short.items()))
            progress(f"{query}: {accuracies[each.name][query]:.2%}, {floor:.2%} wanted")
            if each.name not in ranks:
                ranks[each.name] = each.ranked()
            left = [kernel for kernel in ranks[each.name] if kernel not in kept and kernel not in found]
            found |= dict.fromkeys(left[:step], each.name)
            added |= set(left[:step])
        due = [each for each in candidates if added.intersection(each.layers.values())]
        step = min(2 * step, _MOST)
    return found, accuracies
