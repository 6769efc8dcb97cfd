"""Orders in which many queries take turns: short tours, which load few weights from query to query, and random moves.

A tour begins with nearest neighbours and is improved by Or-opt moves (Or 1976).
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import numpy as np
from numpy.typing import NDArray

from .profile import Profile

__all__ = ["random_move", "short_tour"]

_TURNS_EACH = 4
"""Maximum number of turns that a query may have in one cycle."""


def short_tour(profile: Profile, queries: tuple[str, ...]) -> tuple[str, ...]:
    """Return the queries in an order in which successive queries load few weights. The first query stays first.

    The length of a tour is the milliseconds of all loads, where each query loads the segments that the previous query
    does not need. Memory is assumed to hold one model at a time.
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
    """Shorten a tour of Q queries by Or-opt moves, which move one to three successive queries, and return the tour.

    Args:
        order: indices of the queries in the order of their turns, ``[Q]``; the first query stays first.
        length: milliseconds of loading weights for query j after query i, ``[Q, Q]`` with the indices i, j.
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


def random_move(order: tuple[str, ...], queries: Sequence[str], random: Random) -> tuple[str, ...]:
    """Return an order after a random move.

    Moves exchange two turns, move one to three turns elsewhere, reverse some turns, or add or remove a turn of a query.
    """
    turns = list(order)
    count = len(turns)
    kind = random.choice(("exchange", "neighbours", "move", "reverse", "add", "add", "remove"))
    first, second = sorted((random.randrange(count), random.randrange(count)))
    if kind == "exchange":
        turns[first], turns[second] = turns[second], turns[first]
    elif kind == "neighbours":
        second = (first + 1) % count
        turns[first], turns[second] = turns[second], turns[first]
    elif kind == "move":
        length = random.randint(1, min(3, count))
        stretch = turns[first : first + length]
        del turns[first : first + length]
        place = random.randint(0, len(turns))
        turns[place:place] = stretch
    elif kind == "reverse":
        turns[first : second + 1] = turns[first : second + 1][::-1]
    elif kind == "add":
        query = random.choice(queries)
        if turns.count(query) < _TURNS_EACH:
            turns.insert(first, query)
    else:
        many = [place for place, query in enumerate(turns) if turns.count(query) > 1]
        if many:
            del turns[random.choice(many)]
    return tuple(turns)
