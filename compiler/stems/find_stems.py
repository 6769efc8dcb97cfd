"""Choice of stems: which models of one feed run their first layers once for all of them, and where the stem ends."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from .main_graph import MainGraph

__all__ = ["FoundStem", "find_stems"]

_NARROW = 0.95
"""Least fraction of the longest stem's multiply-adds with which a stem that ends in one value is preferred.

One value is kept for each frame and copied once; the longest stem may end inside a residual block, with two."""
_LEAST = 0.05
"""Least fraction of each model's multiply-adds that a stem must have. A shorter one saves less than the rest costs that
is run as a program of its own."""

_LEAST_LAYERS = 2
"""Least number of layers with weights of a stem. One layer saves little, and its large output must be copied. Models
that share kernels under BatchNorms of their own have one layer in common, the first convolution."""


@dataclass(frozen=True)
class FoundStem:
    """Nodes that several models have in common at their beginning, given by the keys of the nodes' outputs."""

    members: tuple[str, ...]
    """Models that have the stem."""
    keys: frozenset[str]
    """Keys of all values that the stem computes."""
    outputs: tuple[str, ...]
    """Keys of the values of the stem that the rest of at least one model reads."""
    saved: int
    """Number of multiply-adds that the stem saves on one frame of each feed, by running once for several models."""


def find_stems(graphs: Sequence[MainGraph], models_of: Mapping[str, Collection[str]]) -> list[FoundStem]:
    """Choose the stems of a bundle. Each model has one stem at most.

    Two models that see the same feed have a candidate: the longest beginning that both have in common. All models of
    their feeds that have it too are members. The candidate that saves most multiply-adds over all feeds is chosen
    first. Its members are left out of the others.

    Args:
        graphs: main graphs of the models that may have a stem. Keys of different graphs are comparable.
        models_of: feed -> models of the feed's queries.
    """
    left, found = list(graphs), []
    while candidates := list(_candidates(left, models_of)):
        best = max(candidates, key=lambda each: each.saved)
        found.append(best)
        left = [graph for graph in left if graph.model not in best.members]
    return found


def _candidates(graphs: Sequence[MainGraph], models_of: Mapping[str, Collection[str]]) -> Iterator[FoundStem]:
    """Yield a stem for every two models of one feed that have enough first layers in common."""
    values = {graph.model: frozenset(graph.names) for graph in graphs}
    seen: set[frozenset[str]] = set()
    for one, other in combinations(graphs, 2):
        if not any(one.model in models and other.model in models for models in models_of.values()):
            continue
        common = values[one.model] & values[other.model] - {one.image_key}
        if not common or common in seen:
            continue
        seen.add(common)
        holders = {graph.model for graph in graphs if values[graph.model] >= common}
        # A model whose feeds no other member sees would only get slower.
        used = {model for models in models_of.values() if len(holders.intersection(models)) > 1 for model in models}
        members = [graph for graph in graphs if graph.model in holders & used]
        if (stem := _cut(members, common, models_of)) is not None:
            yield stem


def _cut(
    members: Sequence[MainGraph], common: frozenset[str], models_of: Mapping[str, Collection[str]]
) -> FoundStem | None:
    """Return the stem of some models: where the beginning that they have in common is cut; None if it is too short.

    The longest stem may end in several values. Where a stem that ends in a single value has nearly as many
    multiply-adds, it is taken.
    """
    first = members[0]
    keys = _passable(members, common)
    enough = max(1, _NARROW * first.work(keys))
    for name in _last_values(first, enough):
        key = first.keys[name]
        if key in common and first.can_be_passed_on(key):
            inside = first.before(key)
            # The prepared image is at hand anyway: exported graphs read the size of the batch from it.
            if first.work(inside) >= enough and _edge(members, inside) <= {key, first.image_key}:
                keys = inside
                break
    work = first.work(keys)
    layers = len(first.works.keys() & keys)
    if layers < _LEAST_LAYERS or any(work < _LEAST * sum(graph.works.values()) for graph in members):
        return None
    edge = _edge(members, keys)
    saved = sum(max(0, len(models & {graph.model for graph in members}) - 1) for models in map(set, models_of.values()))
    outputs = tuple(key for key in first.names if key in edge and key != first.image_key)
    return FoundStem(tuple(graph.model for graph in members), keys, outputs, work * saved)


def _last_values(graph: MainGraph, enough: float) -> Iterator[str]:
    """Yield the names of a graph's values from the last one back, until the layers up to a value are too little work.

    Too little are fewer than ``enough`` multiply-adds.
    """
    names = [name for node in graph.nodes for name in node.output if name]
    left = sum(graph.works.values())
    for name in reversed(names):
        if left < enough:
            return
        yield name
        left -= graph.works.get(graph.keys[name], 0)


def _edge(members: Sequence[MainGraph], keys: frozenset[str]) -> frozenset[str]:
    """Return the keys of the values that the rest of at least one member reads; see :meth:`.MainGraph.edge`."""
    return frozenset().union(*(graph.edge(keys) for graph in members))


def _passable(members: Sequence[MainGraph], common: frozenset[str]) -> frozenset[str]:
    """Return the largest beginning whose last values can be kept for each image.

    Values that cannot be kept, such as shapes, are computed by the rest of each model.
    """
    first, keys = members[0], common
    while True:
        refused = {key for key in _edge(members, keys) - {first.image_key} if not first.can_be_passed_on(key)}
        if not refused:
            return keys
        keys = keys - first.after(refused)
