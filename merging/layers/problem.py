"""What a search may share: the layers of all models, and which of them could hold one tensor."""

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
    """Slots of one definition between the same models; the paper's layer group."""

    definition: str
    models: tuple[str, ...]
    slots: tuple[Slot, ...]
    saving: int
    """Bytes that sharing all of it frees."""
    position: int
    """Where the first of its layers stands, counted from the front of a model."""


@dataclass(frozen=True)
class Problem:
    """The models of a workload by name, each with its layers in the order in which they run; heads stay private."""

    layers: Mapping[str, tuple[Layer, ...]]
    seed: int = 0
    queries: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Names of the queries that each model answers; left out, the one that it is called after."""
    targets: Mapping[str, float] = field(default_factory=dict)
    """What each query must keep of its accuracy; left out, all of it."""

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(self.layers)

    def size(self, use: Use) -> int:
        """Bytes of a weight."""
        return self._sizes[use]

    @cached_property
    def _sizes(self) -> dict[Use, int]:
        return {Use(layer.model, layer.parameter): layer.bytes for part in self.layers.values() for layer in part}

    @property
    def bytes(self) -> int:
        """Of the weights of all layers."""
        return sum(self._sizes.values())

    def saved(self, sharing: SharingMap) -> int:
        """Bytes that a sharing map frees."""
        return sharing.saved(self._sizes.__getitem__)

    def shareable(self, model: str) -> tuple[Layer, ...]:
        """The layers of a model that may share."""
        return shareable(self.layers[model])

    def groups(self) -> list[Candidates]:
        """Slots between models (:func:`pair_layers`), by definition and models, heaviest saving first."""
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
    """Slots that share as much as possible, with their definitions.

    Between models the k-th layer of a definition pairs with the k-th, counted from the front. With ``inside``, each
    definition is left with as many tensors as the model has that uses it least, and the blocks of a deeper model are
    spread evenly over these, from the first to the last: a layer is replaced best by one that stands at about its
    depth. Each fold takes half of the blocks away again, of an odd number the smaller half.

    Args:
        problem: the models.
        inside: whether layers of one model may share.
        folds: how often blocks are halved inside models.
        period: layers of one definition in a block; two in a basic residual block.
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
    """Which of the ``left`` layers that are left stands for one of ``count``.

    >>> [_spread(index, 10, 6, 2) for index in range(10)]
    [0, 1, 0, 1, 2, 3, 4, 5, 4, 5]
    """
    period = min(period, left)
    # A stage may begin with a part of a block.
    lead = left % period
    if index < lead:
        return index
    block, place = divmod(index - lead, period)
    last, last_left = math.ceil((count - lead) / period) - 1, left // period - 1
    return lead + (round(block * last_left / last) if last else 0) * period + place
