"""Orders in which many queries take turns: a short tour, which loads few weights from query to query.

The tour begins with nearest neighbours and is improved by 2-opt moves (Croes 1958) and Or-opt moves (Or 1976).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .profile import Profile

__all__ = ["short_tour"]


def short_tour(profile: Profile, queries: tuple[str, ...]) -> tuple[str, ...]:
    """Return the queries in an order in which little is loaded between two queries. The first query stays first.

    The length of a tour is the milliseconds of loading, for each query, the segments that the query before does not
    need. Memory is assumed to keep one model only.
    """
    segments = [frozenset(profile.segments_of(query)) for query in queries]
    load_ms = np.array([[sum(map(profile.load_ms, new - old)) for new in segments] for old in segments])
    order, left = [0], list(range(1, len(queries)))
    while left:
        nearest = min(left, key=lambda each: (load_ms[order[-1], each], each))
        left.remove(nearest)
        order.append(nearest)
    return tuple(queries[index] for index in _shortened(order, load_ms))


def _shortened(order: list[int], length: NDArray[np.float64]) -> list[int]:
    """Return a tour of queries after moves that shorten the tour.

    ``length[i, j]`` is the milliseconds of loading for query j after query i.
    """

    def total(tour: list[int]) -> float:
        return float(length[tour, tour[1:] + tour[:1]].sum())

    best = total(order)
    improved = True
    while improved:
        improved = False
        for moved in _moves(order):
            if (new := total(moved)) < best - 1e-9:
                order, best, improved = moved, new, True
                break
    return order


def _moves(order: list[Any]) -> Iterator[list[Any]]:
    """Yield every order that one 2-opt or Or-opt move of a given order leads to; the first item stays first.

    2-opt reverses some consecutive items. Or-opt moves one to three consecutive items to another position.
    """
    count = len(order)
    for start in range(1, count - 1):
        for end in range(start + 1, count):
            yield [*order[:start], *order[start : end + 1][::-1], *order[end + 1 :]]
    for size in (1, 2, 3):
        for start in range(1, count - size + 1):
            stretch, rest = order[start : start + size], order[:start] + order[start + size :]
            for place in range(1, len(rest) + 1):
                if place != start:
                    yield [*rest[:place], *stretch, *rest[place:]]
