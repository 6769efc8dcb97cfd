"""How long works take beside each other."""

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
    """Milliseconds of each. They are done in turns: what slows the machine down for a while slows all of them down.

    Args:
        works: what is timed.
        clock: seconds.
        warm_up: first rounds, which do not count.
        rounds: that count.
        enough_s: seconds after which it has gone on for long enough, with one round at least.
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
