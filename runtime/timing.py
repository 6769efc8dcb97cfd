"""Timing several pieces of work in turns, so that they can be compared."""

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
    """Measure each work, and return its median time in milliseconds.

    Every round does all works once, one after the other: whatever slows the machine down for a while slows all of them
    down.

    Args:
        works: functions to time.
        clock: returns seconds.
        warm_up: rounds at the beginning that do not count.
        rounds: rounds that count, at most.
        enough_s: seconds, warm-up included, after which no further round begins; one round counts at least.
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
