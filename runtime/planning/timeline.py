"""Timeline of a plan: when each turn of a cycle begins, and what every query gets out of the cycle.

The loads of a cycle are known from the order of the turns (:mod:`.residency`). A turn begins when the turn before has
ended and its own weights are in memory. Loads go one after the other over the link. While a turn waits for weights,
queries whose weights are in memory run (*fill*).
"""

from __future__ import annotations

from collections.abc import Sequence
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


class _State:
    """State of C timelines at the end of a turn.

    Args:
        last: time in milliseconds up to which each query has taken frames when the timelines begin, ``[C, Q]``.
    """

    def __init__(self, last: _Array) -> None:
        self.begin: _Array = np.zeros(len(last))
        """Begin of the last turn in milliseconds, ``[C]``."""
        self.end: _Array = np.zeros(len(last))
        """End of the last turn in milliseconds, ``[C]``."""
        self.free: _Array = np.zeros(len(last))
        """Time in milliseconds at which the last load ends, ``[C]``."""
        self.due: dict[int, _Array] = {}
        """Turn -> time in milliseconds at which its weights are in memory, ``[C]``; for turns with loads only."""
        self.last = last
        """Time in milliseconds up to which each query has taken frames or passed them over, ``[C, Q]``."""
        self.count_anew()

    def count_anew(self) -> None:
        """Set all sums to nought."""
        self.answered: _Array = np.zeros_like(self.last)
        """Sum of answered frames, ``[C, Q]``."""
        self.worth: _Array = np.zeros_like(self.last)
        """Sum of the accuracies of all frames, ``[C, Q]``."""
        self.waited: _Array = np.zeros_like(self.end)
        """Sum of the milliseconds that turns waited for weights, ``[C]``."""


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
        nobody = np.zeros(0, np.intp)
        waits = any(self._ahead) or any(self._then)
        self._others = _usable(profile, queries, turns) if fill and waits else [nobody] * len(turns)
        """Queries that can run while each turn waits for weights, because their own are in memory."""
        self._fps = np.array([profile.queries[query].fps for query in queries])
        self._sla_ms = np.array([profile.sla_of(query) for query in queries])
        self._run_ms = _run_table(profile, queries)
        """Milliseconds of a turn on 0, 1, 2, ... frames of each query, ``[Q, frames + 1]``."""
        self._kept = None
        if accuracy:
            self._kept = np.array([kept_accuracy(profile.queries[query], _OLDEST) for query in queries])
            """Sum of the accuracies of answers 1 to n frames old, for each query, ``[Q, ages]``."""

    def outcome(self, sizes: Sizes) -> Outcome:
        """Return what is expected of each of C choices of turn sizes, ``[C, Q]``.

        The cycles are gone through twice, turn by turn, with frames as a fluid: fractions of a frame count. The first
        time only brings loads and waiting frames into step.
        """
        full = np.take_along_axis(self._run_ms[None], sizes[..., None], 2)[..., 0]
        # As if a cycle went before: without frames that wait, no turn would ever take time.
        state = _State(-np.repeat(full[:, self._turn_of].sum(1, keepdims=True), len(self._fps), 1))
        in_time = self._sla_ms - full
        # A query whose turn takes longer than the SLA is always late. All its frames count, so that it gets a turn.
        in_time = np.where(in_time >= 0, in_time, np.inf)
        began = state.end
        for _ in range(2):
            began = state.end
            state.count_anew()
            for turn, query in enumerate(self._turn_of.tolist()):
                begin = self._begin(state, turn)
                if self._others[turn].size:
                    self._fill(state, turn, begin, sizes, full)
                self._run(state, query, begin, sizes[:, query], in_time[:, query])
        period = np.maximum(state.end - began, 1e-9)
        frames = np.minimum(state.answered / period[:, None] * 1e3, self._fps)
        accuracy = None if self._kept is None else np.minimum(state.worth / (self._fps * period[:, None] / 1e3), 1.0)
        return Outcome(period / self._cycles, state.waited / self._cycles, frames, accuracy)

    def _begin(self, state: _State, turn: int) -> _Array:
        """Return when a turn begins, in milliseconds, ``[C]``: after the turn before, and with its weights there."""
        if self._ahead[turn]:
            # These loads were requested when the turn before began.
            state.free = np.maximum(state.free, state.begin)
            for later, milliseconds in self._ahead[turn]:
                state.free = state.free + milliseconds
                state.due[(turn + later) % len(self._turn_of)] = state.free
        if self._then[turn]:
            state.free = np.maximum(state.free, state.end) + self._then[turn]
            state.due[turn] = state.free
        due = state.due.pop(turn, None)
        begin = state.end if due is None else np.maximum(state.end, due)
        state.waited = state.waited + (begin - state.end)
        return begin

    def _fill(self, state: _State, turn: int, begin: _Array, sizes: Sizes, full: _Array) -> None:
        """Run other queries while a turn waits for its weights until ``begin`` milliseconds, ``[C]``.

        Queries first take the frames that came since their last run, then those that come meanwhile. Where there is not
        time for all, queries run in turn, because the query that ran longest ago runs first.
        """
        wait = (begin - state.end)[:, None]
        if not wait.any():
            return
        others = self._others[turn]
        fps, one = self._fps[others] / 1e3, self._run_ms[others, 1]
        size = sizes[:, others]
        last = state.last[:, others]
        # No run may end later than the wait.
        left = np.maximum(wait - one, 0)
        idle = np.maximum(state.end[:, None] - last, 0)
        demand = np.minimum(size, fps * np.minimum(idle, self._sla_ms[others] - one)) + fps * left
        demand = np.where(left > 0, demand, 0)
        around = full[:, others].sum(1, keepdims=True)
        taken = np.clip(fps * around, 1, size)
        each = self._interpolated(others, taken) / taken
        got, rest = np.zeros_like(demand), wait
        for _ in range(3):
            # Queries that have no more frames leave their time to the others.
            open_ = demand > got + 1e-9
            rounds = rest / np.maximum((np.where(open_, taken * each, 0)).sum(1, keepdims=True), 1e-9)
            got = np.where(open_, np.minimum(demand, got + rounds * taken), got)
            rest = np.maximum(wait - (got * each).sum(1, keepdims=True), 0)
        part = got / np.maximum(demand, 1e-9)
        reached = np.where(left > 0, part * (state.end[:, None] + left - last), 0)
        state.answered[:, others] += got
        if self._kept is not None:
            state.worth[:, others] += got + self._accuracy_of(np.maximum(fps * reached - got, 0), others)
        state.last[:, others] = last + reached

    def _run(self, state: _State, query: int, begin: _Array, size: NDArray[np.intp], in_time: _Array) -> None:
        """Run a query's turn of at most ``size`` frames, ``[C]``, from ``begin`` milliseconds on."""
        fps = self._fps[query] / 1e3
        since = begin - state.last[:, query]
        taken = np.minimum(fps * np.minimum(since, in_time), size)
        state.answered[:, query] += taken
        if self._kept is not None:
            missed = np.maximum(fps * since - taken, 0)
            state.worth[:, query] += taken + self._accuracy_of(missed[:, None], np.array([query]))[:, 0]
        # The frames that wait are a whole number, whose mean is ``taken``.
        state.last[:, query] = state.begin = begin
        state.end = begin + self._interpolated(np.array([query]), taken[:, None])[:, 0]

    def _interpolated(self, queries: NDArray[np.intp], frames: _Array) -> _Array:
        """Return the mean milliseconds of turns whose mean numbers of frames are ``[C, N]``, of N queries."""
        low = frames.astype(np.intp)
        below = self._run_ms[queries, low]
        above = self._run_ms[queries, np.minimum(low + 1, self._run_ms.shape[1] - 1)]
        found: _Array = below + (frames - low) * (above - below)
        return found

    def _accuracy_of(self, missed: _Array, queries: NDArray[np.intp]) -> _Array:
        """Return the sum of the accuracies of frames that get the last answer, for numbers of such frames in a row.

        Args:
            missed: numbers of frames, ``[..., N]``.
            queries: index of the query of each of the N columns.
        """
        assert self._kept is not None
        rows = queries
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


def _usable(profile: Profile, queries: Sequence[str], turns: Sequence[Step]) -> list[NDArray[np.intp]]:
    """Return the indices of the queries whose weights are in memory while each turn waits for its own weights."""
    uses = [set(profile.segments_of(query)) for query in queries]
    one_ms = [profile.run_ms(query, 1) <= profile.sla_of(query) for query in queries]
    of_turn = [set(profile.segments_of(turn.query)) for turn in turns]
    moved = {segment for turn in turns for part in (turn.ahead, turn.then) for segment in part.load}
    memory = set().union(*uses) - moved
    coming: set[str] = set()
    usable = [np.zeros(0, np.intp)] * len(turns)
    # The first round only tells what is in memory when the cycles begin anew.
    for place in [*range(len(turns)), *range(len(turns))]:
        turn = turns[place]
        for part in (turn.ahead, turn.then):
            memory -= set(part.evict)
            coming |= set(part.load)
            memory |= set(part.load)
        there = memory - coming
        found = [index for index, used in enumerate(uses) if one_ms[index] and used <= there]
        usable[place] = np.array(found, np.intp)
        coming -= of_turn[place]
    return usable
