"""Search for the layers that must stay float32 so that queries keep their accuracy, most sensitive kernels first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Protocol

import onnx_ir as ir

__all__ = ["Candidate", "Measure", "settle"]


_MOST = 8
"""Maximum number of a model's kernels to exclude from conversion between two measurements of accuracy.

Larger steps exclude kernels needlessly.
"""


class Measure(Protocol):
    """Protocol of an object that measures converted graphs of one model, such as :class:`gemel.calib.judge.Judge`."""

    def accuracies(self, graph: ir.Model) -> dict[str, float]:
        """Return query -> accuracy of a converted graph, from 0 to 1."""

    def error(self, graph: ir.Model) -> float:
        """Return the error of a converted graph's outputs against the float32 graph's; 0 if they are equal."""


@dataclass(frozen=True)
class Candidate:
    """Model to convert to lower precision, with functions that convert and measure it."""

    name: str
    layers: Mapping[str, str]
    """Name of each layer that can be converted to lower precision -> hash of the tensor of its kernel."""
    convert: Callable[[Set[str]], ir.Model]
    """Function that returns a model's converted graph, called with the names of the layers that stay float32."""
    judge: Measure
    """Object that measures converted graphs of one model."""
    floors: Mapping[str, float]
    """Query -> accuracy that the query must keep in lower precision, from 0 to 1."""

    def without(self, kept: Set[str]) -> ir.Model:
        """Return a model's graph in lower precision, in which the layers of the kernels in ``kept`` stay float32."""
        return self.convert({layer for layer, tensor in self.layers.items() if tensor in kept})

    def ranked(self) -> list[str]:
        """Return the hashes of a model's kernels, those most sensitive to conversion to lower precision first.

        The sensitivity of a kernel is the error of the model's outputs if only the layers of this kernel are converted.
        """
        kernels = set(self.layers.values())
        errors = {kernel: self.judge.error(self.without(kernels - {kernel})) for kernel in kernels}
        return sorted(errors, key=lambda kernel: (-errors[kernel], kernel))


def settle(
    candidates: Sequence[Candidate],
    kept: Set[str],
    progress: Callable[[str], None] = lambda what: None,
) -> tuple[dict[str, str], dict[str, dict[str, float]]]:
    """Exclude kernels from conversion until every query keeps its accuracy floor.

    For a model that misses a floor, one more kernel stays float32 after the first measurement, then two more, four
    more, and eight more after each later one. A kernel that several models share stays float32 in all of them, so that
    the kernel stays one tensor.

    Args:
        candidates: the models to convert.
        kept: hashes of kernels that stay float32 in any case.
        progress: called with a line of text for each model that misses a floor.

    Returns:
        Two dicts. The first: hash of each kernel that stays float32 in addition to ``kept`` -> the model that missed a
        floor. The second: model -> query -> accuracy. An accuracy is below its floor only if all kernels of its model
        are float32.
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
