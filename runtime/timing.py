"""Timing of several functions that are run alternately, so that their times can be compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from statistics import median

__all__ = ["medians"]


def medians(
    works: Sequence[Callable[[], object]],
    clock: Callable[[], float],
    *,
    warm_up: int,
    rounds: int,
    enough_s: float = inf,
) -> list[float]:
    """Time several functions, and return the median time of each in milliseconds.

    Every round calls all functions once, one after the other, so that whatever slows the machine down for a while
    affects all of them.

    Args:
        works: functions to time.
        clock: function that returns the time in seconds.
        warm_up: number of rounds at the beginning that are left out of the medians.
        rounds: maximum number of rounds in the medians.
        enough_s: seconds of all calls together, warm-up included, after which no further round begins. The medians have
            at least one round.
    """
    times: list[list[float]] = [[] for _ in works]
    for turn in range(warm_up + rounds):
        for work, taken in zip(works, times, strict=True):
            began = clock()
            work()
            taken.append((clock() - began) * 1e3)
        if turn >= warm_up and sum(map(sum, times)) > enough_s * 1e3:
            break
    return [median(taken[warm_up:]) for taken in times]
