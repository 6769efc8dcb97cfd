"""Random placements of queries on boxes, small and large, and the best placement by trying all of them."""

from __future__ import annotations

import itertools

import numpy as np

from gemel.fleet.placement_case import LEFT_OUT, PlacedBox, PlacedQuery, PlacementCase, make_case

__all__ = ["best_score", "large_case", "small_case"]

_HOMELY = 0.1
"""Part of the queries whose feed must stay on one box."""


def small_case(seed: int, most_queries: int = 6, most_boxes: int = 3) -> PlacementCase:
    """Return a case that is small enough to try all assignments. In about half of them, not all queries fit.

    Queries use some of a few parts, and a part of their own. Boxes differ in memory, speed and number of queries.
    """
    rng = np.random.default_rng(seed)
    count, boxes = int(rng.integers(2, most_queries + 1)), int(rng.integers(1, most_boxes + 1))
    sizes = rng.integers(1, 100, int(rng.integers(2, 12))) * 1000
    weights = []
    for index in range(count):
        used = np.flatnonzero(rng.random(len(sizes)) < rng.uniform(0.1, 0.8))
        weights.append(
            {**{f"part {part}": int(sizes[part]) for part in used}, f"own {index}": int(rng.integers(1, 50)) * 999}
        )
    total = sum(size for used in weights for size in used.values())
    room = total / boxes * rng.uniform(0.5, 1.5)
    queries = [
        PlacedQuery(
            f"q{index}",
            load=float(rng.uniform(0.05, 1.2) * boxes / count),
            boxes=_homes(rng, boxes),
            weight=float(rng.choice([0.5, 1, 1, 2])),
            priority=int(rng.choice([0, 0, 0, 1])),
        )
        for index in range(count)
    ]
    placed = [
        PlacedBox(
            f"box{index}",
            memory=int(rng.choice([1, 1, rng.uniform(0.7, 1.4)]) * room),
            speed=float(rng.choice([1, 1, 2])),
            most=None if rng.random() < 0.8 else int(rng.integers(1, 4)),
        )
        for index in range(boxes)
    ]
    return make_case(queries, placed, weights)


def large_case(seed: int, queries: int = 100, boxes: int = 20, room: float = 0.8) -> PlacementCase:
    """Return a fleet: queries with models of eight architectures, of which a merge made layers common.

    The first third of an architecture's layers is shared by all of its models, the others by the models of one of three
    groups; a quarter of the layers of each model is its own. The queries take 0.7 of the boxes' time.

    Args:
        seed: seed of the random numbers.
        queries: number of queries.
        boxes: number of boxes.
        room: memory of all boxes, in parts of the bytes that the queries need without sharing.
    """
    rng = np.random.default_rng(seed)
    layers = []
    for _ in range(8):
        parts = rng.lognormal(0, 1, int(rng.integers(10, 30)))
        layers.append((parts / parts.sum() * rng.uniform(5e6, 60e6)).astype(int) + 1)
    times = rng.uniform(0.03, 0.25, len(layers))
    weights, loads = [], []
    for index in range(queries):
        kind, group = int(rng.integers(len(layers))), int(rng.integers(3))
        used: dict[str, int] = {}
        for layer, size in enumerate(layers[kind]):
            owner = f"{kind}" if layer < 0.3 * len(layers[kind]) else f"{kind} of group {group}"
            used[f"{layer} of {owner if rng.random() < 0.75 else f'query {index}'}"] = int(size)
        weights.append(used)
        loads.append(float(times[kind] * rng.uniform(0.5, 1.5)))
    speeds, sizes = rng.choice([0.5, 1, 1, 2], boxes), rng.choice([1, 1, 1.5, 2], boxes)
    total = sum(size for used in weights for size in used.values())
    scale = 0.7 * speeds.sum() / sum(loads)
    placed = [
        PlacedBox(f"box{index}", int(room * total * size / sizes.sum()), float(speed))
        for index, (size, speed) in enumerate(zip(sizes, speeds, strict=True))
    ]
    needs = [PlacedQuery(f"q{index}", load * scale, _homes(rng, boxes)) for index, load in enumerate(loads)]
    return make_case(needs, placed, weights)


def best_score(case: PlacementCase) -> tuple[float, ...]:
    """Return the score of the best assignment, by trying all of them."""
    choices = [(LEFT_OUT, *sorted(query.boxes)) for query in case.queries]
    return min(case.score(each) for each in itertools.product(*choices) if case.allows(each))


def _homes(rng: np.random.Generator, boxes: int) -> frozenset[int]:
    """Return the boxes that a query may be on: all, or one."""
    return frozenset(range(boxes)) if rng.random() >= _HOMELY else frozenset({int(rng.integers(boxes))})
