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

from .profile import Profile
from .query_runs import QueryRuns, Sizes, TimelineState
from .residency import Step

__all__ = ["Expectation", "PlanTimeline"]

_Array = NDArray[np.float64]

_SHORTEST_MS = 1e-6
"""Milliseconds of a cycle below which it takes no time."""
_GUESSES = 8
"""Maximum number of steps in which the length of a cycle is guessed."""
_ROUNDS = 12
"""Maximum number of times that the cycles are gone through."""
_SETTLED_MS = 0.1
"""Milliseconds that the loads may fall behind in the cycles, for a timeline to count as settled."""


@dataclass(frozen=True)
class Expectation:
    """What C plans with the same order of turns are expected to do, in cycles that repeat."""

    cycle_ms: _Array
    """Milliseconds of an average cycle, ``[C]``."""
    blocked_ms: _Array
    """Milliseconds of an average cycle in which a turn waits for weights, ``[C]``; other queries may run meanwhile."""
    frames: _Array
    """Frames per second of each query that are answered within the SLA, ``[C, Q]``."""
    accuracy: _Array | None
    """Expected accuracy of each query, 0 to 1, ``[C, Q]``; None if it was not asked for."""


class PlanTimeline:
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
        self._turns_each = np.bincount(self._turn_of, minlength=len(queries)).astype(np.float64)
        """Number of turns of each query in all cycles, ``[Q]``."""
        self._last_turns = np.zeros(len(queries))
        """Place of the last turn of each query, as a fraction of all turns, ``[Q]``."""
        self._last_turns[self._turn_of] = np.arange(len(turns)) / len(turns)
        self._runs = QueryRuns(profile, queries, accuracy=accuracy)
        self.work = 0.07 * len(turns)
        """Work so far, in about milliseconds of CPU time; counted, not measured, so that it is always the same."""
        self._accuracy = accuracy

    def outcome(self, sizes: Sizes) -> Expectation:
        """Return what is expected of each of C choices of turn sizes, ``[C, Q]``.

        The cycles are gone through turn by turn, with frames as a fluid: fractions of a frame count. The first time
        only brings loads and waiting frames into step. Usually the second time counts. Loads that are prefetched for
        several turns may fall behind a little in every cycle, until turns wait for them; then a later time counts.
        """
        runs = self._runs
        full = np.take_along_axis(runs.run_ms[None], sizes[..., None], 2)[..., 0]
        # A query whose turn takes longer than the SLA is always late. All its frames count, so that it gets a turn.
        young = np.where(runs.sla_ms >= full, runs.sla_ms - full, np.inf)
        # As if a cycle went before.
        state = TimelineState((self._last_turns - 1) * self._guessed(sizes, full, young)[:, None])
        began, behind, rounds = state.end, state.end, 0
        for rounds in range(1, _ROUNDS + 1):
            began, before = state.end, behind
            state.count_anew()
            for turn, query in enumerate(self._turn_of.tolist()):
                begin = self._begin(state, turn)
                if self._others[turn].size:
                    runs.fill(state, self._others[turn], begin, sizes, young)
                runs.turn(state, query, begin, sizes[:, query], young[:, query])
            behind = np.maximum(state.free - state.end, 0)
            if rounds > 1 and (behind - before <= _SETTLED_MS).all():
                break
        self.work += (0.17 + rounds * len(self._turn_of) * 0.017 + state.steps * 0.053) * (1 + len(sizes) / 300)
        period = state.end - began
        fps = runs.fps * 1e3
        # A device with turns that take no time answers everything.
        busy = (period > _SHORTEST_MS)[:, None]
        came = fps * np.maximum(period, _SHORTEST_MS)[:, None] / 1e3
        frames = np.where(busy, np.minimum(state.answered / came, 1), 1) * fps
        accuracy = np.where(busy, np.minimum(state.worth / came, 1), 1) if self._accuracy else None
        return Expectation(period / self._cycles, state.waited / self._cycles, frames, accuracy)

    def _guessed(self, sizes: Sizes, full: _Array, young: _Array) -> _Array:
        """Return about how many milliseconds all cycles take, ``[C]``: as long as their loads, or as their runs.

        Runs take the frames that came in a cycle; so the longer the cycle, the longer the runs.
        """
        waits = sum(self._then)
        loads = max(waits + sum(milliseconds for groups in self._ahead for _, milliseconds in groups), _SHORTEST_MS)
        columns = np.arange(full.shape[1])

        def taking(cycle_ms: _Array) -> _Array:
            taken, _ = self._runs.taken(cycle_ms[:, None] / self._turns_each, sizes, young)
            runs: _Array = (self._runs.interpolated(taken, columns) * self._turns_each).sum(1)
            return np.maximum(runs + waits, loads)

        before: _Array = np.maximum((full * self._turns_each).sum(1) + waits, loads)
        found = taking(before)
        for _ in range(_GUESSES):
            after = taking(found)
            # The secant method: the time of runs grows with that of the cycle, less and less.
            slope = np.clip((found - after) / np.maximum(before - found, 1e-12), 0, 0.9999)
            before, found = found, np.maximum(found - (found - after) / (1 - slope), loads)
            if (np.abs(found - before) <= 1e-3 * before).all():
                break
        return found

    def _begin(self, state: TimelineState, turn: int) -> _Array:
        """Return the begin of a turn in milliseconds, ``[C]``: after the turn before, when its weights are there."""
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
