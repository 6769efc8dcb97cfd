"""Timeline of a plan: when each turn of a cycle begins, and how many frames each query answers in time.

The loads of a cycle are known from the order of the turns (:mod:`.residency`). A turn begins when the previous turn has
ended and the weights of the turn's models are in memory. Segments are loaded one after the other. While a turn waits
for weights, other queries run whose weights are in memory (*fill*).
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
"""Milliseconds of a plan's cycles below which the cycles count as taking no time, so that every frame is answered."""
_GUESSES = 8
"""Maximum number of steps of the secant method that estimates the length of a plan's cycles."""
_ROUNDS = 12
"""Maximum number of rounds through a plan's cycles that are followed, in search of a round that repeats."""
_SETTLED_MS = 0.1
"""Milliseconds by which loads of weights may fall further behind the turns in a round that counts as repeating."""


@dataclass(frozen=True)
class Expectation:
    """Expected times, rates and accuracies of C plans of Q queries, which have the same order of turns."""

    cycle_ms: _Array
    """Milliseconds of an average cycle of each of C plans, ``[C]``."""
    blocked_ms: _Array
    """Milliseconds of an average cycle of each of C plans in which a turn waits for weights, ``[C]``.

    Other queries may run meanwhile.
    """
    frames: _Array
    """Frames per second of each of Q queries that are answered within the SLA, in each of C plans, ``[C, Q]``."""
    accuracy: _Array | None
    """Expected accuracy of each of Q queries in each of C plans, 0 to 1, ``[C, Q]``; None if not computed."""


class PlanTimeline:
    """Timeline of an order of turns, which gives the expected times, rates and accuracies of any turn sizes.

    Args:
        profile: sizes, times and rates of the workload on its device.
        queries: names of the Q queries, in the order of the columns of results ``[C, Q]``.
        cycles: turns with their loads of segments, in the cycles that repeat; see :func:`.residency.settled`.
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
        """Index of the query of each of the T turns of all cycles, ``[T]``."""
        self._ahead, self._then = _loads(profile, turns)
        nobody = np.zeros(0, np.intp)
        waits = any(self._ahead) or any(self._then)
        self._others = _usable(profile, queries, turns) if fill and waits else [nobody] * len(turns)
        """Indices of the queries that can run while a turn waits for weights, as one array for each turn."""
        self._turns_each = np.bincount(self._turn_of, minlength=len(queries)).astype(np.float64)
        """Number of turns of each of Q queries in all cycles, ``[Q]``."""
        self._last_turns = np.zeros(len(queries))
        """Number of turns before the last turn of each of Q queries, divided by the number of all turns, ``[Q]``."""
        self._last_turns[self._turn_of] = np.arange(len(turns)) / len(turns)
        self._runs = QueryRuns(profile, queries, accuracy=accuracy)
        self.work = 0.07 * len(turns)
        """Work of this timeline so far, in about milliseconds of CPU time: a count of steps, the same in every run."""
        self._accuracy = accuracy

    def outcome(self, sizes: Sizes) -> Expectation:
        """Return the expected times, rates and accuracies of C choices of the turn sizes of Q queries.

        A round follows all cycles turn by turn. Frames are a fluid: a turn may take a fraction of a frame. The first
        round only brings loads and waiting frames into step. The result usually comes from the second round. Loads that
        are prefetched for several turns may fall behind a little in every round, until turns wait for these loads; the
        result then comes from a later round.

        Args:
            sizes: maximum number of frames in a turn of each query, ``[C, Q]``.
        """
        runs = self._runs
        full = np.take_along_axis(runs.run_ms[None], sizes[..., None], 2)[..., 0]
        # A query whose turn takes longer than the SLA is always late. All its frames count, so that it gets a turn.
        young = np.where(runs.sla_ms >= full, runs.sla_ms - full, np.inf)
        # Each query begins with the frames that would wait for it if one round had gone before.
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
        """Estimate the milliseconds of all cycles together, ``[C]``: the larger of the times of loads and of runs.

        Runs take the frames that came in a cycle, so a longer cycle makes longer runs.

        Args:
            sizes: maximum number of frames in a turn of each of Q queries, for C choices, ``[C, Q]``.
            full: milliseconds of a turn with the maximum number of frames, ``[C, Q]``.
            young: maximum age in milliseconds of a frame that a full turn still answers in time, ``[C, Q]``.
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
            # The secant method: the time of runs grows with the length of the cycles, but less and less.
            slope = np.clip((found - after) / np.maximum(before - found, 1e-12), 0, 0.9999)
            before, found = found, np.maximum(found - (found - after) / (1 - slope), loads)
            if (np.abs(found - before) <= 1e-3 * before).all():
                break
        return found

    def _begin(self, state: TimelineState, turn: int) -> _Array:
        """Return the milliseconds at which a turn begins in each of C timelines, ``[C]``, and note the turn's loads.

        The turn begins when the previous turn has ended and the turn's weights are in memory.

        Args:
            state: state of the C timelines after the previous turn; changed.
            turn: index of the turn among the turns of all cycles.
        """
        if self._ahead[turn]:
            # These loads were requested when the previous turn began.
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
    """Return the loads of weights that each turn of repeating cycles requests.

    Returns:
        First, for each turn, the loads that begin while the previous turn runs, as a list of pairs: number of turns
        until the first turn that needs the loaded segments (0 for the turn itself), and milliseconds of the loads.
        Second, for each turn, the milliseconds of the loads that begin only when the previous turn has ended.
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
    """Return, for each turn, the indices of the queries that can run while the turn waits for weights.

    The weights of these queries are in memory, and a run on one frame is no longer than the SLA.
    """
    uses = [set(profile.segments_of(query)) for query in queries]
    one_ms = [profile.run_ms(query, 1) <= profile.sla_of(query) for query in queries]
    of_turn = [set(profile.segments_of(turn.query)) for turn in turns]
    moved = {segment for turn in turns for part in (turn.ahead, turn.then) for segment in part.load}
    memory = set().union(*uses) - moved
    coming: set[str] = set()
    usable = [np.zeros(0, np.intp)] * len(turns)
    # The first pass only finds out which segments are in memory when the cycles repeat.
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
