"""Cost of turns, for one order of queries: how long a cycle takes, and how many frames are answered in time.

A query takes several frames in one turn, so that its weights are loaded once for all of the frames. More frames per
turn make the cycle longer and the frames older. :func:`best_choice` looks for the numbers of frames per turn with
the best score.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .profile import Profile
from .residency import Step

__all__ = ["Choices", "TurnCosts", "best_choice"]

_MOST_COMBINATIONS = 50_000
"""Maximum number of combinations of turn sizes for which all combinations are tried, for one order of queries."""

_Array = NDArray[np.float64]
Choices = NDArray[np.intp]
"""Indices of the turn sizes that Q queries have in each of C plans, ``[C, Q]``; ``[Q]`` for one plan."""


class TurnCosts:
    """Costs of all turn sizes, for an order of queries whose loads are known.

    A turn size is the number of frames that a query takes in one turn. The profile says which sizes a model may have
    (:meth:`.profile.Profile.batches`), and how long such a turn runs.

    Loads that are made *ahead* of a turn run at the same time as the previous turn. These loads delay the cycle only by
    the time that they take longer than the previous turn. All other loads delay the cycle by their full time.

    Args:
        profile: sizes, times and rates of the workload on its device.
        order: queries in the order of their turns.
        cycles: turns with their loads, in the cycles that repeat; see :func:`.residency.settled`.
        fair: whether to score the smallest fraction of frames that a query answers in time, instead of the total.
    """

    def __init__(self, profile: Profile, order: Sequence[str], cycles: Sequence[Sequence[Step]], fair: bool) -> None:
        loads = np.array(
            [[[sum(map(profile.load_ms, part.load)) for part in (turn.ahead, turn.then)] for turn in c] for c in cycles]
        )
        self._ahead_ms: _Array = loads[:, :, 0]
        """Milliseconds of the loads that are made ahead of each turn, ``[cycles, Q]``."""
        self._then_ms = float(loads[:, :, 1].sum(1).mean())
        """Milliseconds per cycle of the loads during which no model runs, on average over the cycles."""
        options = [profile.batches(query) for query in order]
        self.counts = [len(sizes) for sizes in options]
        """Number of sizes (numbers of frames) that each query's turns can be chosen from."""
        longest = max(self.counts)
        # Shorter rows of the array are filled with their last size; no choice has such an index.
        self._sizes = np.array([sizes + sizes[-1:] * (longest - len(sizes)) for sizes in options])
        """Number of frames in a turn of each of Q queries, for each turn size, ``[Q, sizes]``."""
        self._run_ms = np.array(
            [
                [profile.run_ms(query, int(size)) for size in sizes]
                for query, sizes in zip(order, self._sizes, strict=True)
            ]
        )
        """Milliseconds that a turn of each of Q queries runs, for each turn size, ``[Q, sizes]``."""
        self._fps = np.array([profile.queries[query].fps for query in order])
        self._places = np.arange(len(order))
        self._sla_ms, self._fair = profile.sla_ms, fair

    def sizes(self, choice: Choices) -> list[int]:
        """Return the number of frames of each query's turn, for one choice ``[Q]`` of turn sizes."""
        found: list[int] = self._sizes[self._places, choice].tolist()
        return found

    def cycle(self, choices: Choices) -> tuple[_Array, _Array]:
        """Return the milliseconds of an average cycle, and its milliseconds in which no model runs, ``[C]`` each."""
        runs = self._run_ms[self._places, choices]
        before = np.roll(runs, 1, axis=1)[:, None]
        blocked = np.maximum(self._ahead_ms - before, 0).sum(2).mean(1) + self._then_ms
        return np.maximum(runs.sum(1) + blocked, 1e-9), blocked

    def frames(self, choices: Choices) -> _Array:
        """Return the frames per second of each query that are answered within the SLA, ``[C, Q]``.

        The value is the average over all phases that a camera's clock may have relative to the cycle.
        """
        cycle = self.cycle(choices)[0][:, None]
        # A frame is in time if it is at most this old when the turn begins.
        young = self._sla_ms - self._run_ms[self._places, choices]
        # A query whose turn takes longer than the SLA is always late. All its frames count, so that it gets a turn.
        window = np.where(young >= 0, np.minimum(young, cycle), cycle)
        found: _Array = np.minimum(self._sizes[self._places, choices], self._fps * window / 1e3) / cycle * 1e3
        return found

    def slowest(self, choice: Choices) -> int:
        """Return the index of the query that answers the smallest fraction of its frames within the SLA."""
        return int(np.argmin(self.frames(choice[None])[0] / self._fps))

    def score(self, choices: Choices) -> _Array:
        """Return the plan's objective (more is better) for each of C choices of turn sizes, as an array ``[C]``."""
        frames = self.frames(choices)
        # Of plans with the same frames, the one with the shortest cycle wins.
        total: _Array = np.round(frames.sum(1), 6) - self.cycle(choices)[0] * 1e-9
        lowest: _Array = (frames / self._fps).min(1) * 1e6 if self._fair else np.zeros(len(choices))
        return lowest + total


def best_choice(costs: TurnCosts) -> Choices:
    """Return the turn sizes of Q queries that together have the highest score, as indices ``[Q]``.

    All combinations are tried if there are few. Otherwise the result is a local optimum: changing the turn size of any
    single query does not improve the score.
    """
    if np.prod(costs.counts, dtype=float) <= _MOST_COMBINATIONS:
        best, _ = _best(costs, np.indices(costs.counts).reshape(len(costs.counts), -1).T)
        return best
    return _climbed(costs)


def _climbed(costs: TurnCosts) -> Choices:
    """Return the turn sizes of Q queries that hill climbing finds, as indices ``[Q]``.

    The search starts from the best of several choices, and changes one turn size at a time while the score improves.
    """
    counts = np.array(costs.counts)
    # Starts: the same size for all queries; and the smallest sizes, with the slowest query's size raised repeatedly.
    tried = list(np.minimum(np.arange(counts.max())[:, None], counts - 1))
    choice = np.zeros(len(counts), np.intp)
    while choice[slowest := costs.slowest(choice)] < counts[slowest] - 1:
        choice = choice.copy()
        choice[slowest] += 1
        tried.append(choice)
    best, score = _best(costs, np.array(tried))
    while True:
        before = score
        for place, count in enumerate(counts):
            changed = np.repeat(best[None], count, 0)
            changed[:, place] = np.arange(count)
            best, score = _best(costs, changed)
        if score <= before + 1e-9:
            return best


def _best(costs: TurnCosts, choices: Choices) -> tuple[Choices, float]:
    """Return the choice of turn sizes with the highest score, and that score."""
    scores = costs.score(choices)
    place = int(np.argmax(scores))
    return choices[place], float(scores[place])
