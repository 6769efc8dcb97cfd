"""Timeline of a plan: when each turn of a cycle begins, and what every query gets out of the cycle.

The loads of a cycle are known from the order of the turns (:mod:`.residency`). A turn begins when the turn before has
ended and its own weights are in memory. Loads go one after the other over the link. While a turn waits for weights,
queries whose weights are in memory run (*fill*).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .objectives import kept_accuracy
from .profile import Profile
from .residency import Step

__all__ = ["Outcome", "Sizes", "Timeline"]

_Array = NDArray[np.float64]
Sizes = NDArray[np.intp]
"""Maximum numbers of frames in a turn of each of Q queries, in each of C plans, ``[C, Q]``."""

_OLDEST = 1000
"""Maximum age in frames at which the staleness of an answer is told apart."""


@dataclass(frozen=True)
class Outcome:
    """What C plans with the same order of turns are expected to do, in cycles that repeat."""

    cycle_ms: _Array
    """Milliseconds of an average cycle, ``[C]``."""
    blocked_ms: _Array
    """Milliseconds of an average cycle in which a turn waits for weights, ``[C]``; other queries may run meanwhile."""
    frames: _Array
    """Frames per second of each query that are answered within the SLA, ``[C, Q]``."""
    accuracy: _Array | None
    """Expected accuracy of each query, 0 to 1, ``[C, Q]``; None if it was not asked for."""


class Timeline:
    """Expected times and frames of cycles of turns whose loads are known.

    Args:
        profile: sizes, times and rates of the workload on its device.
        queries: names of the Q queries, in the order of the columns of results.
        cycles: turns with their loads, in the cycles that repeat; see :func:`.residency.settled`.
        fill: whether other queries run while a turn waits for weights.
        accuracy: whether to compute expected accuracies; every query must have a staleness curve.
    """

    def __init__(
        self,
        profile: Profile,
        queries: Sequence[str],
        cycles: Sequence[Sequence[Step]],
        *,
        fill: bool,
        accuracy: bool = False,
    ) -> None:
        place = {query: index for index, query in enumerate(queries)}
        self._cycles = len(cycles)
        turns = [turn for cycle in cycles for turn in cycle]
        self._turn_of = np.array([place[turn.query] for turn in turns])
        """Index of the query of each turn of all cycles, ``[T]``."""
        self._ahead, self._then = _loads(profile, turns)
        self._loads = any(self._ahead) or any(self._then)
        self._usable = _usable(profile, queries, turns) if fill and self._loads else None
        """Whether each query's weights are in memory while the turn waits for weights, ``[T, Q]``; None without fill."""
        self._fps = np.array([profile.queries[query].fps for query in queries])
        self._sla_ms = np.array([profile.sla_of(query) for query in queries])
        self._run_ms = _run_table(profile, queries)
        """Milliseconds of a turn on 0, 1, 2, ... frames of each query, ``[Q, frames + 1]``."""
        self._kept = None
        if accuracy:
            self._kept = np.array([kept_accuracy(profile.queries[query], _OLDEST) for query in queries])
            """Sum of the accuracies of answers 1 to n frames old, for each query, ``[Q, ages]``."""

    def outcome(self, sizes: Sizes) -> Outcome:
        """Return what is expected of each of C choices of turn sizes, ``[C, Q]``."""
        full = np.take_along_axis(self._run_ms[None], sizes[..., None], 2)[..., 0]
        in_time = self._sla_ms - full
        # A query whose turn takes longer than the SLA is always late. All its frames count, so that it gets a turn.
        in_time = np.where(in_time >= 0, in_time, np.inf)
        runs = full[:, self._turn_of]
        begins, ends, period = self._times(runs)
        # Turns take fewer frames than they may where cameras deliver fewer.
        waiting = self._turns(begins, ends, period, sizes, in_time)[0]
        counts = np.minimum(waiting, sizes[:, self._turn_of])
        low = np.floor(counts).astype(np.intp)
        part = counts - low
        table = self._run_ms[self._turn_of[None], low]
        more = self._run_ms[self._turn_of[None], np.minimum(low + 1, self._run_ms.shape[1] - 1)]
        begins, ends, period = self._times(table + part * (more - table))
        answered, accuracy = self._answered(begins, ends, period, sizes, in_time)
        waits = (begins - ends).sum(1)
        period = np.maximum(period, 1e-9)
        return Outcome(
            period / self._cycles,
            waits / self._cycles,
            np.minimum(answered / period[:, None] * 1e3, self._fps),
            accuracy,
        )

    def _times(self, runs: _Array) -> tuple[_Array, _Array, _Array]:
        """Return when turns begin and may begin, and how long all cycles take, in milliseconds.

        Args:
            runs: milliseconds of each turn, ``[C, T]``.

        Returns:
            Begin of each turn; end of the turn before, ``[C, T]`` each; and the period of all cycles, ``[C]``.
        """
        if not self._loads:
            ends = np.cumsum(runs, axis=1) - runs
            return ends, ends, runs.sum(1)
        count = runs.shape[1]
        free = begin = end = np.zeros(len(runs))
        due: dict[int, _Array] = {}
        begins, ends_ = [], []
        # The first round brings the loads into step; the second is the one that repeats.
        for turn in range(2 * count + 1):
            place = turn % count
            if self._ahead[place]:
                # These loads were requested when the turn before began.
                free = np.maximum(free, begin)
                for later, milliseconds in self._ahead[place]:
                    free = free + milliseconds
                    due[turn + later] = free
            if self._then[place]:
                free = np.maximum(free, end) + self._then[place]
                due[turn] = free
            ends_.append(end)
            known = due.pop(turn, None)
            begin = end if known is None else np.maximum(end, known)
            begins.append(begin)
            end = begin + runs[:, place]
        found = np.array(begins).T, np.array(ends_).T
        return found[0][:, count:-1], found[1][:, count:-1], found[0][:, -1] - found[0][:, count]

    def _since(self, begins: _Array, period: _Array) -> _Array:
        """Return the milliseconds from the previous turn of a turn's query to that turn, for each turn, ``[C, T]``."""
        since = np.empty_like(begins)
        for query in range(len(self._fps)):
            (places,) = (self._turn_of == query).nonzero()
            own = begins[:, places]
            since[:, places] = own - np.concatenate([own[:, -1:] - period[:, None], own[:, :-1]], axis=1)
        return since

    def _fills(self, begins: _Array, ends: _Array, sizes: Sizes) -> tuple[NDArray[np.bool_], _Array, _Array] | None:
        """Return which queries run while a turn waits for weights, until when, and on which fraction of their frames.

        Returns:
            Three arrays ``[C, T, Q]``; None if no query runs in any wait.
        """
        if self._usable is None:
            return None
        one = self._run_ms[:, 1]
        until = begins[:, :, None] - one
        runs = self._usable & (until > ends[:, :, None]) & (one <= self._sla_ms)
        if not runs.any():
            return None
        busy = (self._usable * (self._fps * one / 1e3)).sum(1)
        # Where they have not time for all frames, queries take turns, each with as many frames as its turn may have.
        full = np.take_along_axis(self._run_ms[None], sizes[..., None], 2)[..., 0]
        around = np.maximum((self._usable[None] * full[:, None]).sum(2), 1e-9)
        shared = np.minimum(1.0, sizes[:, None] / (self._fps * around[..., None]) * 1e3)
        return runs, until, np.where((busy > 1)[None, :, None], shared, 1.0)

    def _turns(
        self, begins: _Array, ends: _Array, period: _Array, sizes: Sizes, in_time: _Array
    ) -> tuple[_Array, _Array, tuple[_Array, _Array] | None]:
        """Return the frames that wait for each turn and are young enough, and what queries get in waits.

        Returns:
            Waiting frames; milliseconds since the query's last run, ``[C, T]`` each; and, if queries run in waits,
            the frames that each answers there and the sum of the accuracies of all its frames there, ``[C, Q]`` each.
        """
        fps = self._fps / 1e3
        fills = self._fills(begins, ends, sizes)
        if fills is None:
            since = self._since(begins, period)
            return fps[self._turn_of] * np.minimum(since, in_time[:, self._turn_of]), since, None
        runs, until, part = fills
        own = self._turn_of[:, None] == np.arange(len(self._fps))
        last = np.maximum(np.where(runs, until, -np.inf), np.where(own, begins[:, :, None], -np.inf))
        last = np.maximum.accumulate(last, axis=1)
        around = last[:, -1:] - period[:, None, None]
        before = np.maximum(np.concatenate([around, last[:, :-1]], axis=1), around)
        # A run in a wait first takes the frames that came since the query's last run, then all that come meanwhile.
        idle = np.maximum(ends[:, :, None] - before, 0)
        young = np.minimum(idle, self._sla_ms - self._run_ms[:, 1])
        first = np.minimum(sizes[:, None], fps * young) * part
        meanwhile = fps * (until - np.maximum(ends[:, :, None], before))
        filled = np.where(runs, first + meanwhile * part, 0.0).sum(1)
        worth = filled
        if self._kept is not None:
            lost = self._accuracy_of(np.maximum(fps * idle - first, 0))
            gap = np.maximum(1 / part - 1, 1.0)
            mean = self._accuracy_of(gap) / gap
            worth = np.where(runs, first + lost + meanwhile * (part + (1 - part) * mean), 0.0).sum(1)
        reached = np.where(runs, np.maximum(until, before), before)
        since = begins - np.take_along_axis(reached, self._turn_of[None, :, None], 2)[..., 0]
        return fps[self._turn_of] * np.minimum(since, in_time[:, self._turn_of]), since, (filled, worth)

    def _answered(
        self, begins: _Array, ends: _Array, period: _Array, sizes: Sizes, in_time: _Array
    ) -> tuple[_Array, _Array | None]:
        """Return the frames that each query answers in all cycles, and its expected accuracy, ``[C, Q]`` each."""
        waiting, since, fills = self._turns(begins, ends, period, sizes, in_time)
        own = (self._turn_of[:, None] == np.arange(len(self._fps))).astype(np.float64)
        taken = np.minimum(waiting, sizes[:, self._turn_of])
        answered: _Array = taken @ own
        if fills is not None:
            answered = answered + fills[0]
        if self._kept is None:
            return answered, None
        fps = self._fps / 1e3
        missed = np.maximum(fps[self._turn_of] * since - taken, 0)
        worth = (taken + self._accuracy_of(missed, self._turn_of)) @ own
        if fills is not None:
            worth = worth + fills[1]
        arrived = np.maximum(fps * period[:, None], 1e-9)
        return answered, np.minimum(worth / arrived, 1.0)

    def _accuracy_of(self, missed: _Array, queries: NDArray[np.intp] | None = None) -> _Array:
        """Return the sum of the accuracies of frames that get the last answer, for numbers of such frames in a row.

        Args:
            missed: numbers of frames, ``[..., N]``.
            queries: index of the query of each of the N columns; by default, column and query are the same.
        """
        assert self._kept is not None
        rows = np.arange(missed.shape[-1]) if queries is None else queries
        whole = np.minimum(missed, _OLDEST - 1)
        low = whole.astype(np.intp)
        below, above = self._kept[rows, low], self._kept[rows, low + 1]
        beyond = (missed - whole) * (self._kept[rows, -1] - self._kept[rows, -2])
        found: _Array = below + (whole - low) * (above - below) + beyond
        return found


def _run_table(profile: Profile, queries: Sequence[str]) -> _Array:
    """Return the milliseconds of a turn on 0, 1, 2, ... frames of each query, ``[Q, frames + 1]``."""
    most = max(profile.batches(query)[-1] for query in queries)
    tables: dict[str, list[float]] = {}
    for query in queries:
        model = profile.queries[query].model
        if model not in tables:
            tables[model] = [0.0, *(profile.run_ms(query, frames) for frames in range(1, most + 1))]
    return np.array([tables[profile.queries[query].model] for query in queries])


def _loads(profile: Profile, turns: Sequence[Step]) -> tuple[list[list[tuple[int, float]]], list[float]]:
    """Return the loads of each turn.

    Returns:
        For each turn, the loads ahead of it in their order: how many turns later the first turn follows that needs
        them, and the milliseconds that they take together. And for each turn, the milliseconds of the loads for which
        no model runs.
    """
    uses = [frozenset(profile.segments_of(turn.query)) for turn in turns]
    ahead: list[list[tuple[int, float]]] = []
    for place, turn in enumerate(turns):
        groups: list[tuple[int, float]] = []
        for segment in turn.ahead.load:
            later = next(step for step in range(len(turns)) if segment in uses[(place + step) % len(turns)])
            milliseconds = profile.load_ms(segment)
            if groups and groups[-1][0] == later:
                milliseconds += groups.pop()[1]
            groups.append((later, milliseconds))
        ahead.append(groups)
    return ahead, [sum(map(profile.load_ms, turn.then.load)) for turn in turns]


def _usable(profile: Profile, queries: Sequence[str], turns: Sequence[Step]) -> NDArray[np.bool_]:
    """Return whether each query's weights are in memory while a turn waits for its own weights, ``[T, Q]``."""
    uses = [set(profile.segments_of(query)) for query in queries]
    of_turn = [set(profile.segments_of(turn.query)) for turn in turns]
    moved = {segment for turn in turns for part in (turn.ahead, turn.then) for segment in part.load}
    memory = set().union(*uses) - moved
    coming: set[str] = set()
    usable = np.zeros((len(turns), len(queries)), np.bool_)
    # The first round only tells what is in memory when the cycles begin anew.
    for place in [*range(len(turns)), *range(len(turns))]:
        turn = turns[place]
        for part in (turn.ahead, turn.then):
            memory -= set(part.evict)
            coming |= set(part.load)
            memory |= set(part.load)
        there = memory - coming
        usable[place] = [used <= there for used in uses]
        coming -= of_turn[place]
    return usable
