"""Expected runs of queries: how many frames a turn takes, how long it runs, and what its answers are worth.

Frames are a fluid: a turn may take 1.5 frames, which stands for one frame and two frames in turns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .objectives import kept_accuracy
from .profile import Profile

__all__ = ["QueryRuns", "Sizes", "TimelineState"]

_Array = NDArray[np.float64]
_Places = NDArray[np.intp]
Sizes = NDArray[np.intp]
"""Maximum numbers of frames in a turn of each of Q queries, in each of C plans, ``[C, Q]``."""

_OLDEST = 1000
"""Maximum age in frames at which the staleness of an answer is told apart."""
_RUNS_EACH = 6
"""Maximum number of runs in one wait that are followed one by one; the time after them is shared out at once."""


class TimelineState:
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
        self.steps = 0
        """Steps that were needed to follow runs during waits."""
        self.rows: _Places = np.arange(len(last))
        """Numbers of the timelines, ``[C]``."""
        self.count_anew()

    def count_anew(self) -> None:
        """Set all sums to nought."""
        self.answered: _Array = np.zeros_like(self.last)
        """Sum of frames that are answered in time, ``[C, Q]``."""
        self.worth: _Array = np.zeros_like(self.last)
        """Sum of the accuracies of all frames, ``[C, Q]``."""
        self.waited: _Array = np.zeros_like(self.end)
        """Sum of the milliseconds that turns waited for weights, ``[C]``."""


class QueryRuns:
    """Times, rates and accuracies of Q queries, from which their runs in a timeline follow.

    Args:
        profile: sizes, times and rates of the workload on its device.
        queries: names of the Q queries, in the order of columns.
        accuracy: whether to add up accuracies; every query must have a staleness curve.
    """

    def __init__(self, profile: Profile, queries: Sequence[str], *, accuracy: bool) -> None:
        self.fps = np.array([profile.queries[query].fps for query in queries]) / 1e3
        """Frames per millisecond of each query, ``[Q]``."""
        self.sla_ms = np.array([profile.sla_of(query) for query in queries])
        self.run_ms = _run_table(profile, queries)
        """Milliseconds of a turn on 0, 1, 2, ... frames of each query, ``[Q, frames + 1]``."""
        self._one_ms = self.run_ms[:, 1]
        self._young_alone = np.where(self.sla_ms >= self._one_ms, self.sla_ms - self._one_ms, np.inf)
        """Age in milliseconds at which a frame of each query is still answered in time if it runs alone, ``[Q]``."""
        self._kept = None
        if accuracy:
            self._kept = np.array([kept_accuracy(profile.queries[query], _OLDEST) for query in queries])
            """Sum of the accuracies of answers 1 to n frames old, for each query, ``[Q, ages]``."""

    def turn(self, state: TimelineState, query: int, begin: _Array, size: _Places, young: _Array) -> None:
        """Run a query's turn of at most ``size`` frames, ``[C]``, from ``begin`` milliseconds on.

        The turn takes the frames that came in the last ``young`` milliseconds, ``[C]``. If there is none, it takes the
        newest frame, which is answered in time only if a turn of one frame ends soon enough.
        """
        since = np.maximum(begin - state.last[:, query], 0)
        taken, timely = self.taken(since, size, young, query)
        state.answered[:, query] += timely
        if self._kept is not None:
            state.worth[:, query] += timely + self._accuracy_of(self.fps[query] * since - timely, query)
        state.last[:, query] = np.maximum(state.last[:, query], begin)
        state.begin = begin
        state.end = begin + self.interpolated(taken, query)

    def taken(
        self, since: _Array, size: _Places, young: _Array, query: int | slice = slice(None)
    ) -> tuple[_Array, _Array]:
        """Return the mean frames that a turn takes, and the mean frames of these that it answers in time.

        Args:
            since: milliseconds since the query took frames last.
            size: maximum number of frames that the turn takes.
            young: milliseconds within which frames of a full turn must have come.
            query: column of the query; all queries if left out.
        """
        fps = self.fps[query]
        fresh = np.minimum(fps * np.minimum(since, young), size)
        taken = np.maximum(fresh, np.minimum(fps * since, 1))
        timely = np.maximum(fresh, np.minimum(fps * np.minimum(since, self._young_alone[query]), 1))
        return taken, timely

    def fill(self, state: TimelineState, others: _Places, until: _Array, sizes: Sizes, young: _Array) -> None:
        """Run queries between the end of the last turn and ``until`` milliseconds, ``[C]``.

        As in :class:`.conductor.Conductor`, the query that ran longest ago runs first, on the newest frames that it can
        answer until then, and passes over older frames. It is sure to have a frame one period of its camera after it
        took the last one. It may have one earlier, but then it often falls into step with its camera and has none.

        Args:
            state: state of C timelines.
            others: columns of the queries that may run.
            until: time in milliseconds by which all runs must end, ``[C]``.
            sizes: maximum numbers of frames in a turn of each query, ``[C, Q]``.
            young: milliseconds within which frames of a full turn must have come, ``[C, Q]``.
        """
        now = state.end
        if not (until > now).any():
            return
        fps, one = self.fps[others], self._one_ms[others]
        last = state.last[:, others]
        rows = state.rows
        for _ in range(_RUNS_EACH):
            state.steps += 1
            start = np.maximum(last + 1 / fps, now[:, None])
            # Queries that have a frame now come first, the one that ran longest ago before the others.
            rank = np.where(start > now[:, None], start, last - 1e9)
            rank = np.where(start + one <= until[:, None], rank, np.inf)
            chosen = rank.argmin(1)
            runs = rank[rows, chosen] < np.inf
            if not runs.any():
                break
            query = others[chosen]
            begin = np.where(runs, start[rows, chosen], now)
            fits = (self.run_ms[query, 1:] <= (until - begin)[:, None]).sum(1)
            before = last[rows, chosen]
            since = np.maximum(begin - before, 0)
            came = np.maximum(self.fps[query] * since, 1)
            fresh = np.minimum(
                np.minimum(self.fps[query] * np.minimum(since, young[rows, query]), sizes[rows, query]), fits
            )
            taken = np.where(runs, np.maximum(fresh, 1), 0)
            alone = np.where(since <= self._young_alone[query], 1, self.fps[query] * self._young_alone[query])
            timely = np.where(runs, np.maximum(fresh, np.minimum(alone, 1)), 0)
            state.answered[rows, query] += timely
            if self._kept is not None:
                state.worth[rows, query] += np.where(runs, timely + self._accuracy_of(came - timely, query), 0)
            last[rows, chosen] = np.where(runs, begin, before)
            now = begin + self.interpolated(taken, query)
        else:
            self._share_out(state, others, now, until, sizes, last)
        state.last[:, others] = last

    def _share_out(
        self, state: TimelineState, others: _Places, now: _Array, until: _Array, sizes: Sizes, last: _Array
    ) -> None:
        """Share out the time from ``now`` until ``until``, ``[C]``, among queries by the frames that they have then.

        ``last`` is the time up to which each of the other queries has taken frames, ``[C, others]``; it moves on.
        """
        fps, one = self.fps[others], self._one_ms[others]
        rest = (until - now)[:, None]
        left = np.where(rest >= one, rest - one, 0)
        since = np.minimum(np.maximum(now[:, None] - last, 0), self._young_alone[others])
        demand = np.where(left > 0, np.minimum(fps * since, sizes[:, others]) + fps * left, 0)
        part = np.minimum(rest / np.maximum((demand * one).sum(1, keepdims=True), 1e-9), 1)
        got = demand * part
        state.answered[:, others] += got
        reached = np.where(left > 0, np.maximum(now[:, None] + left - last, 0) * part, 0)
        if self._kept is not None:
            state.worth[:, others] += got + self._accuracy_of(np.maximum(fps * reached - got, 0), others)
        last += reached

    def interpolated(self, frames: _Array, query: int | _Places) -> _Array:
        """Return the mean milliseconds of turns whose mean numbers of frames are ``frames``, ``[C]``."""
        low = frames.astype(np.intp)
        below = self.run_ms[query, low]
        above = self.run_ms[query, np.minimum(low + 1, self.run_ms.shape[1] - 1)]
        found: _Array = below + (frames - low) * (above - below)
        return found

    def _accuracy_of(self, missed: _Array, query: int | _Places) -> _Array:
        """Return the sum of the accuracies of frames that get the last answer, for numbers of such frames in a row."""
        assert self._kept is not None
        whole = np.clip(missed, 0, _OLDEST - 1)
        low = whole.astype(np.intp)
        below, above = self._kept[query, low], self._kept[query, low + 1]
        oldest = self._kept[query, -1] - self._kept[query, -2]
        found: _Array = below + (whole - low) * (above - below) + np.maximum(missed - whole, 0) * oldest
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
