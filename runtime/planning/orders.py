"""Orders in which many queries take turns: a short tour, which loads few weights from query to query.

The tour begins with nearest neighbours and is improved by Or-opt moves (Or 1976).
"""

from __future__ import annotations

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
    """Return a tour of queries after Or-opt moves that shorten the tour: one to three queries go to another place.

    ``length[i, j]`` is the milliseconds of loading for query j after query i.
    """
    tour = np.array(order)
    improved = len(tour) > 3
    while improved:
        improved = False
        for size in (1, 2, 3):
            for start in range(1, len(tour) - size + 1):
                stretch, rest = tour[start : start + size], np.delete(tour, np.s_[start : start + size])
                after = np.roll(rest, -1)
                gained = length[tour[start - 1], stretch[0]] + length[stretch[-1], rest[start % len(rest)]]
                gained -= length[tour[start - 1], rest[start % len(rest)]]
                costs = length[rest, stretch[0]] + length[stretch[-1], after] - length[rest, after]
                place = int(np.argmin(costs))
                if costs[place] < gained - 1e-9:
                    tour, improved = np.insert(rest, place + 1, stretch), True
    return [int(each) for each in tour]
