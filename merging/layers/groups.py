"""Groups: the appearances of one definition across a workload, and the bytes that sharing them frees.

What is counted is weights of convolutions and linear layers, whatever values they hold: layers of different models
that are equal already count as if they were not, so a workload has the same potential before and after merging. A
model that several queries use is one model, and a weight that a model uses twice is one appearance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from .layers import Kind, Layer, shareable

__all__ = ["Group", "groups_of", "pair_bytes", "ratio"]


@dataclass(frozen=True)
class Group:
    """Layers of one definition: at least two, in the order of their models and of their running."""

    definition: str
    layers: tuple[Layer, ...]

    @property
    def bytes(self) -> int:
        """Of one of them."""
        return self.layers[0].bytes

    @property
    def counts(self) -> Mapping[str, int]:
        """Model to the number of its layers."""
        return Counter(layer.model for layer in self.layers)

    @property
    def saving(self) -> int:
        """Bytes freed when models share and keep their own layers apart.

        The k-th layer of one model pairs with the k-th of every other, so the model with most of them sets how many
        stay.
        """
        return self.bytes * (len(self.layers) - max(self.counts.values()))

    @property
    def saving_inside(self) -> int:
        """Bytes freed when layers of one model share as well, so that one copy of all stays."""
        return self.bytes * (len(self.layers) - 1)


def ratio(some: float, whole: float) -> float:
    """``some`` as a part of ``whole``, from 0 to 1; 0 where there is nothing, as of a model without layers."""
    return some / whole if whole else 0.0


def groups_of(layers: Iterable[Layer], heads: bool = False) -> tuple[Group, ...]:
    """The groups of a workload's layers, the largest saving first.

    Args:
        layers: of all models, model after model, each in the order of running.
        heads: count the layers that give a model's outputs as well, as the paper does; merging keeps them private.
    """
    found: dict[Kind, list[Layer]] = {}
    for layer in shareable(layers, heads):
        found.setdefault(layer.kind, []).append(layer)
    groups = (Group(members[0].definition, tuple(members)) for members in found.values() if len(members) > 1)
    return tuple(sorted(groups, key=lambda group: (-group.saving, -group.saving_inside)))


def pair_bytes(models: Sequence[str], groups: Iterable[Group]) -> dict[tuple[str, str], int]:
    """Every pair of models, in the order given, to the bytes that the two could share if there were no others.

    >>> pair_bytes(["a", "b", "c"], [])
    {('a', 'b'): 0, ('a', 'c'): 0, ('b', 'c'): 0}
    """
    pairs = dict.fromkeys(combinations(models, 2), 0)
    place = {model: index for index, model in enumerate(models)}
    for group in groups:
        counts = group.counts
        for first, second in combinations(sorted(counts, key=place.__getitem__), 2):
            pairs[first, second] += group.bytes * min(counts[first], counts[second])
    return pairs
