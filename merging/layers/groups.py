"""Groups: all layers of one definition across a workload, and the bytes that sharing their weights frees.

Only weights of convolutions and linear layers count, whatever their values. Layers of different models that already
hold equal weights count as separate layers, so a workload has the same potential before and after merging. A model that
several queries use counts once, and so does a weight that a model uses twice.
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
    """Group of at least two layers of one definition, ordered by model and, within a model, by when they run."""

    definition: str
    layers: tuple[Layer, ...]

    @property
    def bytes(self) -> int:
        """Size in bytes of the weight of one layer of the group; all layers of the group have the same size."""
        return self.layers[0].bytes

    @property
    def counts(self) -> Mapping[str, int]:
        """Model name -> number of layers that the model has in the group."""
        return Counter(layer.model for layer in self.layers)

    @property
    def saving(self) -> int:
        """Bytes freed by sharing the group's layers between models, while the layers of one model stay separate.

        The k-th layer of one model pairs with the k-th layer of every other model. As many tensors remain as the model
        with the most layers in the group has there.
        """
        return self.bytes * (len(self.layers) - max(self.counts.values()))

    @property
    def saving_inside(self) -> int:
        """Bytes freed by sharing the group's layers between and inside models, so that a single tensor remains."""
        return self.bytes * (len(self.layers) - 1)


def ratio(some: float, whole: float) -> float:
    """Return ``some / whole``, or 0 if ``whole`` is 0, as it is for a model without layers."""
    return some / whole if whole else 0.0


def groups_of(layers: Iterable[Layer], heads: bool = False) -> tuple[Group, ...]:
    """Group a workload's layers by definition, largest saving first. A layer without a partner is in no group.

    Args:
        layers: layers of all models, model after model, in the order in which a model's layers run.
        heads: whether to count layers that give a model's outputs, as the paper does; merging keeps these private.
    """
    found: dict[Kind, list[Layer]] = {}
    for layer in shareable(layers, heads):
        found.setdefault(layer.kind, []).append(layer)
    groups = (Group(members[0].definition, tuple(members)) for members in found.values() if len(members) > 1)
    return tuple(sorted(groups, key=lambda group: (-group.saving, -group.saving_inside)))


def pair_bytes(models: Sequence[str], groups: Iterable[Group]) -> dict[tuple[str, str], int]:
    """Return pair of model names -> bytes that the two models could share if there were no other models.

    Args:
        models: names of the models; the names of a pair are in the same order.
        groups: groups of the layers of these models.

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
