"""Families: models with most of their layers in common, and the distances between the weights of models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import combinations

import numpy as np
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from torch import Tensor

from .groups import ratio
from .layers import Kind, Layer
from .problem import Problem, pair_layers
from .sharing import SharingMap, Slot, Use

__all__ = ["by_size", "distances_of", "find_families", "pair_families", "representatives"]

_APART = 0.5
"""Mean distance between two sets of models from which on the sets are separate families.

The distance of two models is the fraction of the smaller model's bytes that the larger model has no partner for."""


def find_families(problem: Problem) -> list[frozenset[str]]:
    """Return the models of a problem in families: sets of models that have most of their layers' bytes in common.

    Models with equal lists of definitions are in one family, and so are a small and a deep model of one kind, because
    the deep model has all layers of the small one. Families are found by average linkage, so that a model which
    resembles two families does not make them one. The family with most bytes comes first.
    """
    names = sorted(problem.models)
    if len(names) < 2:
        return [frozenset(names)] if names else []
    common = _common_bytes(problem)
    size = {name: sum(layer.bytes for layer in problem.shareable(name)) for name in names}
    apart = [1 - ratio(common[pair], min(size[name] for name in pair)) for pair in combinations(names, 2)]
    found: dict[int, set[str]] = {}
    for name, number in zip(names, fcluster(linkage(apart, "average"), _APART, "distance"), strict=True):
        found.setdefault(int(number), set()).add(name)
    return sorted(map(frozenset, found.values()), key=lambda family: (-sum(map(size.__getitem__, family)), min(family)))


def _common_bytes(problem: Problem) -> dict[tuple[str, str], int]:
    """Return pair of model names, in the order of the alphabet -> bytes that the two models could share."""
    counts = {name: Counter(layer.kind for layer in problem.shareable(name)) for name in problem.models}
    return {
        (first, second): sum(kind[2] * count for kind, count in (counts[first] & counts[second]).items())
        for first, second in combinations(sorted(problem.models), 2)
    }


def pair_families(problem: Problem, shared: SharingMap, families: Iterable[Collection[str]]) -> SharingMap:
    """Return a sharing map between families that share weights inside themselves already.

    The different tensors of a family stand for its layers: the k-th tensor of a definition in one family pairs with the
    k-th tensor of the same definition in every other family. No two tensors of one family become one.

    Args:
        problem: the layers of all models.
        shared: sharing map that is committed.
        families: sets of models; models of different sets share no weight in ``shared``.
    """
    slot_of: dict[Use, Slot] = {use: slot for slot in shared.slots for use in slot}
    joined: dict[tuple[Kind, int], set[Use]] = {}
    for family in families:
        seen: Counter[Kind] = Counter()
        known: set[Use] = set()
        # The model with most layers comes first: its order is the order of the family's tensors.
        for name in sorted(family, key=lambda name: (-len(problem.layers[name]), name)):
            for layer in problem.shareable(name):
                use = Use(name, layer.parameter)
                if use not in known:
                    tensor = slot_of.get(use, (use,))
                    known.update(tensor)
                    joined.setdefault((layer.kind, seen[layer.kind]), set()).update(tensor)
                    seen[layer.kind] += 1
    slots = (slot for slot in joined.values() if len({use.model for use in slot}) > 1)
    between = SharingMap().joined(slots)
    return SharingMap(tuple(slot for slot in between.slots if slot not in shared.slots))


def distances_of(
    layers: Mapping[str, Sequence[Layer]], states: Mapping[str, Mapping[str, Tensor]]
) -> dict[tuple[str, str], float]:
    """Return pair of model names, in the order of the alphabet -> distance between the models' weights.

    The distance is 0 for equal weights and about 1 for models that were trained independently. It is
    ``1 - 2 <a, b> / (|a|^2 + |b|^2)`` over all layers that may share; the k-th layer of a definition is compared with
    the k-th one, and a layer without a partner counts in the norms only. Channels are compared in the order in which
    they lie: models that were fine-tuned from one checkpoint still have their channels in one order.

    Args:
        layers: model name -> layers of the model.
        states: model name -> state dict of the model, on the CPU.
    """
    problem = Problem({name: tuple(each) for name, each in layers.items()})
    names = sorted(problem.models)
    place = {name: index for index, name in enumerate(names)}
    products = np.zeros((len(names), len(names)))
    for name in names:
        for layer in problem.shareable(name):
            products[place[name], place[name]] += float(states[name][layer.parameter].double().square().sum())
    for _, slot in pair_layers(problem):
        weights = torch.stack([states[use.model][use.parameter].flatten().float() for use in slot])
        rows = [place[use.model] for use in slot]
        found = (weights @ weights.T).numpy().astype(float)
        np.fill_diagonal(found, 0)
        products[np.ix_(rows, rows)] += found
    norms = products.diagonal()
    return {
        # Rounded: a search must choose the same donors when it is resumed with another number of threads.
        (first, second): round(1 - ratio(2 * products[i, j], norms[i] + norms[j]), 3)
        for (i, first), (j, second) in combinations(enumerate(names), 2)
    }


def representatives(problem: Problem, models: Collection[str], count: int) -> tuple[str, ...]:
    """Return up to ``count`` models that stand for all models of a set, by name, largest first.

    Each different list of layers has one representative, the model with the least total distance to the others of its
    list. If there are more lists than ``count``, lists are spread evenly over the sizes, and the largest and the
    smallest are among them. If there are fewer, models are added one by one: each time the one that brings the models
    closest to their nearest representative.

    Args:
        problem: the layers of all models, and the distances of their weights.
        models: names of the models to choose from.
        count: largest number of models to return, at least 2.
    """
    ordered = by_size(problem, models)
    lists: dict[tuple[Kind, ...], list[str]] = {}
    for name in ordered:
        lists.setdefault(tuple(layer.kind for layer in problem.shareable(name)), []).append(name)

    def apart(first: str, second: str) -> float:
        """Return the distance between the weights of two models; 1 where it is not known."""
        pair = (min(first, second), max(first, second))
        return problem.distances.get(pair, 1.0) if first != second else 0.0

    chosen = [min(each, key=lambda name: (sum(apart(name, other) for other in each), name)) for each in lists.values()]
    if len(chosen) > count:
        chosen = [chosen[round(index * (len(chosen) - 1) / (count - 1))] for index in range(count)]
    while len(chosen) < min(count, len(ordered)):
        left = [name for name in ordered if name not in chosen]
        chosen.append(
            min(left, key=lambda name: (sum(min(apart(each, kept) for kept in (*chosen, name)) for each in left), name))
        )
    return by_size(problem, chosen)


def by_size(problem: Problem, models: Collection[str]) -> tuple[str, ...]:
    """Return model names by number of layers, largest first; models with equally many layers are ordered by name."""
    # The order of a set differs from process to process, but a repeated search must make the same trials.
    return tuple(sorted(models, key=lambda name: (-len(problem.layers[name]), name)))
