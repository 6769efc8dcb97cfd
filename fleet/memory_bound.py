"""Lower bound of the memory of all placements: how many boxes must hold each part of the weights."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np

from .placement_case import PlacementCase

__all__ = ["fewest_boxes", "memory_bound"]

_ROUNDING = 1e-9
"""Fraction by which a sum of loads may be too large because floating point numbers round."""


def fewest_boxes(case: PlacementCase, queries: Collection[int]) -> list[int]:
    """Return, for each part, a number of boxes that must at least hold the part if all given queries are placed.

    The queries that use a part lie on the boxes that hold it. So these boxes must have the load, the number and the
    memory that these queries need together, where each box more holds the part once more. Queries that can only be on
    different boxes, and queries that leave no room for one another, need boxes of their own.
    """
    return [_boxes_of(case, part, [q for q in queries if case.uses[q, part]]) for part in range(len(case.sizes))]


def memory_bound(case: PlacementCase, queries: Collection[int]) -> int:
    """Return bytes that every placement of all given queries takes at least."""
    return int(np.dot(case.sizes, fewest_boxes(case, queries)))


def _boxes_of(case: PlacementCase, part: int, users: list[int]) -> int:
    """Return a number of boxes that must at least hold a part.

    Args:
        case: queries and boxes.
        part: index of the part.
        users: queries that use the part.
    """
    if len(users) < 2:
        return len(users)
    allowed = sorted(set().union(*(case.queries[query].boxes for query in users)))
    boxes = [case.boxes[box] for box in allowed]
    fastest = max(box.speed for box in boxes)
    forced = {next(iter(case.queries[query].boxes)) for query in users if len(case.queries[query].boxes) == 1}
    wide = sum(2 * case.queries[query].load > fastest * (1 + _ROUNDING) for query in users)
    size, together = int(case.sizes[part]), case.held(users)

    def enough(has: list[float], needs: Callable[[int], float]) -> int:
        """Return how many boxes, those with most first, have what a number of boxes needs."""
        has, total = sorted(has, reverse=True), 0.0
        for count, each in enumerate(has, 1):
            total += each
            if total * (1 + _ROUNDING) >= needs(count):
                return count
        return len(has)

    load = case.load(users)
    return max(
        len(forced),
        wide,
        enough([box.speed for box in boxes], lambda _: load),
        enough([box.memory for box in boxes], lambda count: together + (count - 1) * size),
        enough([len(users) if box.most is None else box.most for box in boxes], lambda _: len(users)),
    )
