"""The problem that a search solves: the layers of all models, and which of them could hold one tensor."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from .layers import Kind, Layer, shareable
from .sharing import SharingMap, Slot, Use

__all__ = ["Candidates", "Problem", "pair_layers"]


@dataclass(frozen=True)
class Candidates:
    """All slots of one definition between the same models; what the paper calls a layer group."""

    definition: str
    models: tuple[str, ...]
    """Models of the uses of each slot, in the slot's order."""
    slots: tuple[Slot, ...]
    saving: int
    """Bytes that sharing all slots frees."""
    position: int
    """Least index of a layer of the slots among the shareable layers of its model, from 0 at the front."""


@dataclass(frozen=True)
class Problem:
    """Layers, queries and targets of a workload's models. Layers that give a model's outputs stay private."""

    layers: Mapping[str, tuple[Layer, ...]]
    """Model -> its layers in the order in which they run."""
    seed: int = 0
    """Seed of the search's random numbers."""
    queries: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Model -> names of the queries that it answers. A model that is not listed answers the query of its own name."""
    targets: Mapping[str, float] = field(default_factory=dict)
    """Query -> part of its original accuracy that it must keep, 0 to 1. A query that is not listed must keep all."""

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models."""
        return tuple(self.layers)

    def size(self, use: Use) -> int:
        """Return the bytes of a weight."""
        return self._sizes[use]

    @cached_property
    def _sizes(self) -> dict[Use, int]:
        """Bytes of every weight."""
        return {Use(layer.model, layer.parameter): layer.bytes for part in self.layers.values() for layer in part}

    @property
    def bytes(self) -> int:
        """Bytes of the weights of all layers."""
        return sum(self._sizes.values())

    def saved(self, sharing: SharingMap) -> int:
        """Return the bytes that a sharing map frees."""
        return sharing.saved(self._sizes.__getitem__)

    def shareable(self, model: str) -> tuple[Layer, ...]:
        """Return the layers of a model that may share."""
        return shareable(self.layers[model])

    def groups(self) -> list[Candidates]:
        """Group the slots between models (:func:`pair_layers`) by definition and models, largest saving first."""
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
    """Pair layers into slots that share as much as possible; return each slot with its definition.

    Between models, the k-th layer of a definition pairs with the k-th layer of every other model, counted from the
    front.

    With ``inside``, layers of one model share too. A definition then keeps as many tensors as the model with the fewest
    layers of it has. The blocks of a deeper model are spread evenly over these tensors, from the first to the last,
    because a layer is best replaced by one at about its depth. Each fold halves the number of blocks once more; of an
    odd number it removes the smaller half.

    Args:
        problem: layers of all models.
        inside: whether layers of one model may share.
        folds: how many times the blocks are halved; has an effect only with ``inside``.
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
        left: number of layers that remain.
        period: number of layers in a block.

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
