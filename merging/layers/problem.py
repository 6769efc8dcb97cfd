"""Problem that a search solves: the layers of all models, and which of these layers could hold one tensor."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from .layers import Kind, Layer, shareable
from .sharing import SharingMap, Slot, Use

__all__ = ["Candidates", "Problem", "pair_layers"]


@dataclass(frozen=True)
class Candidates:
    """All slots of one definition between the same models; what the paper calls a layer group.

    A slot is a set of layer weights that can hold one tensor.
    """

    definition: str
    models: tuple[str, ...]
    """Names of the models whose weights the slots (sets of weights that can be one tensor) hold."""
    slots: tuple[Slot, ...]
    saving: int
    """Bytes that are freed when the weights of each slot (set of weights that can be one tensor) are one tensor."""
    position: int
    """Smallest index of a layer whose weights the slots (sets of weights that can be one tensor) hold; a layer's index
    counts the shareable layers of its model from 0."""


@dataclass(frozen=True)
class Problem:
    """Layers, queries and targets of a workload's models. Layers that give a model's outputs stay private."""

    layers: Mapping[str, tuple[Layer, ...]]
    """Model name -> the model's layers in the order in which they run."""
    seed: int = 0
    """Seed of the search's random numbers."""
    queries: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Model name -> names of the queries that use the model. A model without an entry serves the query of its name."""
    targets: Mapping[str, float] = field(default_factory=dict)
    """Query name -> fraction (0 to 1) of the original accuracy that the query must keep. The fraction is 1 for a query
    without an entry."""
    distances: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """Pair of model names, in the order of the alphabet -> distance between the models' weights, 0 if they are equal
    and about 1 if they have nothing in common. The distance is 1 for a pair without an entry."""

    joint_error: Callable[[Slot], float | None] | None = None
    """Function that returns, for a slot (set of layer weights that can be one tensor), the part of the layers' outputs
    that one kernel for all cannot explain (:mod:`.closed_form`), from 0 to 1; None where that is unknown."""

    @property
    def models(self) -> tuple[str, ...]:
        """Names of all models whose layers may share."""
        return tuple(self.layers)

    def size(self, use: Use) -> int:
        """Return the size of a weight in bytes."""
        return self._sizes[use]

    @cached_property
    def _sizes(self) -> dict[Use, int]:
        """Weight -> size in bytes, for the weights of the layers of all models."""
        return {Use(layer.model, layer.parameter): layer.bytes for part in self.layers.values() for layer in part}

    @property
    def bytes(self) -> int:
        """Size in bytes of the weights of the layers of all models."""
        return sum(self._sizes.values())

    def saved(self, sharing: SharingMap) -> int:
        """Return the bytes that a sharing map frees, relative to models that share nothing."""
        return sharing.saved(self._sizes.__getitem__)

    def shareable(self, model: str) -> tuple[Layer, ...]:
        """Return the layers of a model that may share."""
        return shareable(self.layers[model])

    def of(self, models: Collection[str]) -> Problem:
        """Return the problem that is left if only ``models`` may share."""
        return replace(self, layers={name: part for name, part in self.layers.items() if name in models})

    def groups(self) -> list[Candidates]:
        """Return the slots between models (:func:`pair_layers`), grouped by definition and models.

        A slot is a set of layer weights that can hold one tensor. The group with the largest saving comes first.
        """
        sizes = self._sizes
        places = {
            Use(name, layer.parameter): index
            for name in self.models
            for index, layer in enumerate(self.shareable(name))
        }
        found: dict[tuple[str, tuple[str, ...]], list[Slot]] = {}
        for definition, slot in pair_layers(self):
            found.setdefault((definition, tuple(use.model for use in slot)), []).append(slot)
        groups = [
            Candidates(
                definition,
                models,
                tuple(slots),
                SharingMap(tuple(slots)).saved(sizes.__getitem__),
                min(places[use] for slot in slots for use in slot),
            )
            for (definition, models), slots in found.items()
        ]
        return sorted(groups, key=lambda group: (-group.saving, group.definition, group.models))


def pair_layers(problem: Problem, *, inside: bool = False, folds: int = 0, period: int = 2) -> list[tuple[str, Slot]]:
    """Pair layers into slots (sets of layer weights that can hold one tensor); return each slot with its definition.

    The slots share as much as possible. Between models, the k-th layer of a definition, counted from the front, pairs
    with the k-th layer of the same definition in every other model.

    With ``inside``, layers of one model share too. As many tensors of a definition then remain as the model with the
    fewest layers of that definition has. The blocks of a deeper model are spread evenly over these tensors, from the
    first to the last, because a layer is best replaced by a layer at about the same depth. Each fold halves the number
    of different blocks once more; of an odd number, a fold removes the smaller half.

    Args:
        problem: layers of all models.
        inside: whether layers of one model may share.
        folds: number of times to halve the number of different blocks; has an effect only with ``inside``.
        period: number of layers of one definition in a block; 2 in a basic residual block.
    """
    counts: dict[Kind, dict[str, int]] = {}
    for name in problem.models:
        for kind, count in Counter(layer.kind for layer in problem.shareable(name)).items():
            counts.setdefault(kind, {})[name] = count
    slots: dict[tuple[Kind, int], list[Use]] = {}
    for name in problem.models:
        seen: Counter[Kind] = Counter()
        for layer in problem.shareable(name):
            index, left = seen[layer.kind], min(counts[layer.kind].values())
            seen[layer.kind] += 1
            if inside:
                index = _spread(index, counts[layer.kind][name], left, period)
                for _ in range(folds):
                    before, left = left, left - left // period // 2 * period
                    index = _spread(index, before, left, period)
            slots.setdefault((layer.kind, index), []).append(Use(name, layer.parameter))
    return [(kind[0], tuple(sorted(slot))) for (kind, _), slot in slots.items() if len(slot) > 1]


def _spread(index: int, count: int, left: int, period: int) -> int:
    """Return which of ``left`` remaining layers replaces layer ``index`` of ``count``, spreading whole blocks evenly.

    Args:
        index: index of the layer, from 0.
        count: number of layers of the definition before.
        left: number of layers of the definition that remain.
        period: number of layers of the definition in a block.

    >>> [_spread(index, 10, 6, 2) for index in range(10)]
    [0, 1, 0, 1, 2, 3, 4, 5, 4, 5]
    """
    period = min(period, left)
    # A stage may begin with a part of a block; its layers stay as they are.
    lead = left % period
    if index < lead:
        return index
    block, place = divmod(index - lead, period)
    last_block, last_left = math.ceil((count - lead) / period) - 1, left // period - 1
    return lead + (round(block * last_left / last_block) if last_block else 0) * period + place
