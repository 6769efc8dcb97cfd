"""Expected runs of queries: how many frames a turn takes, how long it runs, and how accurate its answers are.

Frames are a fluid: a turn may take 1.5 frames, which stands for turns that take one frame and two frames alternately.
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
"""Maximum numbers of frames in a turn of each of Q queries: ``[C, Q]`` for C plans, ``[Q]`` for one plan."""

_OLDEST = 1000
"""Age of an answer in frames from which on the accuracy of the answer counts as constant."""
_RUNS_EACH = 6
"""Maximum number of runs during one wait for weights that are followed one by one.

The rest of the wait is shared out among all queries that may run.
"""


class TimelineState:
    """State of C timelines of Q queries at the end of a turn.

    Args:
        last: time in milliseconds up to which each query has taken its frames when the timelines begin, ``[C, Q]``.
    """

    def __init__(self, last: _Array) -> None:
        self.begin: _Array = np.zeros(len(last))
        """Time in milliseconds at which the last turn began, in each of C timelines, ``[C]``."""
        self.end: _Array = np.zeros(len(last))
        """Time in milliseconds at which the last turn ended, in each of C timelines, ``[C]``."""
        self.free: _Array = np.zeros(len(last))
        """Time in milliseconds at which the last requested load of weights ends, in each of C timelines, ``[C]``."""
        self.due: dict[int, _Array] = {}
        """Index of a turn -> time in milliseconds at which the weights that the turn waits for are in memory, ``[C]``
        for C timelines. Turns that wait for no load are not included."""
        self.last = last
        """Time in milliseconds up to which each of Q queries has taken or skipped its frames, in each of C timelines,
        ``[C, Q]``."""
        self.steps = 0
        """Number of steps in which runs of queries during waits for weights were followed; a measure of CPU time."""
        self.rows: _Places = np.arange(len(last))
        """Indices 0 to C - 1 of the C timelines, ``[C]``."""
        self.count_anew()

    def count_anew(self) -> None:
        """Reset the sums of answered frames, of accuracies and of waiting times to zero."""
        self.answered: _Array = np.zeros_like(self.last)
        """Number of frames that each of Q queries answered in time, in each of C timelines, ``[C, Q]``."""
        self.worth: _Array = np.zeros_like(self.last)
        """Sum of the accuracies of all frames of each of Q queries, in each of C timelines, ``[C, Q]``."""
        self.waited: _Array = np.zeros_like(self.end)
        """Milliseconds that all turns together waited for weights, in each of C timelines, ``[C]``."""


class QueryRuns:
    """Model of the runs of Q queries in timelines: frames taken, frames answered in time, durations and accuracies.

    Args:
        profile: sizes, times and rates of the workload on its device.
        queries: names of the Q queries, in the order of the columns of arrays ``[C, Q]``.
        accuracy: whether to add up the accuracies of answers; every query must have a staleness curve.
    """

    def __init__(self, profile: Profile, queries: Sequence[str], *, accuracy: bool) -> None:
        self.fps = np.array([profile.queries[query].fps for query in queries]) / 1e3
        """Frames per millisecond of the feed of each of Q queries, ``[Q]``."""
        self.sla_ms = np.array([profile.sla_of(query) for query in queries])
        self.run_ms = _run_table(profile, queries)
        """Milliseconds of a turn on 0, 1, 2, ... frames of each of Q queries, ``[Q, frames + 1]``."""
        self._one_ms = self.run_ms[:, 1]
        self._young_alone = np.where(self.sla_ms >= self._one_ms, self.sla_ms - self._one_ms, np.inf)
        """Maximum age in milliseconds at which a run on one frame still answers the frame in time, for each of Q
        queries, ``[Q]``. Infinite if a run on one frame takes longer than the SLA."""
        self._kept = None
        if accuracy:
            self._kept = np.array([kept_accuracy(profile.queries[query], _OLDEST) for query in queries])
            """Sum of the accuracies of answers 1 to n frames old, for each of Q queries and n from 0 to 1000,
            ``[Q, 1001]``."""

    def turn(self, state: TimelineState, query: int, begin: _Array, size: _Places, young: _Array) -> None:
        """Run a turn of one query in each of C timelines, and note the turn in the state of the timelines.

        The turn takes the frames that a full turn still answers in time. If there is none, the turn takes the newest
        frame, which is answered in time only if a turn on one frame ends soon enough.

        Args:
            state: state of the C timelines; changed.
            query: column of the query.
            begin: time in milliseconds at which the turn begins, ``[C]``.
            size: maximum number of frames that the turn takes, ``[C]``.
            young: maximum age in milliseconds of a frame that a full turn still answers in time, ``[C]``.
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
        """Return the mean number of frames that a turn takes, and the mean number that the turn answers in time.

        All arrays are ``[C]`` for one query in C timelines, or ``[C, Q]`` for all Q queries.

        Args:
            since: milliseconds since the query last took frames.
            size: maximum number of frames that the turn takes.
            young: maximum age in milliseconds of a frame that a full turn still answers in time.
            query: column of the query; all queries if left out.
        """
        fps = self.fps[query]
        fresh = np.minimum(fps * np.minimum(since, young), size)
        taken = np.maximum(fresh, np.minimum(fps * since, 1))
        timely = np.maximum(fresh, np.minimum(fps * np.minimum(since, self._young_alone[query]), 1))
        return taken, timely

    def fill(self, state: TimelineState, others: _Places, until: _Array, sizes: Sizes, young: _Array) -> None:
        """Run other queries while a turn waits for weights, in each of C timelines, and note the runs in the state.

        As in :class:`.conductor.Conductor`, the query that ran longest ago runs first. A run takes the newest frames
        that can be answered before the wait ends, and skips older frames. A query counts as having a new frame one
        camera period after its last run. In a real run the frame may come earlier, but then the query's runs often fall
        into step with the camera and find no frame.

        Args:
            state: state of the C timelines; changed.
            others: columns of the queries that may run.
            until: time in milliseconds by which all runs must end, ``[C]``.
            sizes: maximum numbers of frames in a turn of each of Q queries, ``[C, Q]``.
            young: maximum age in milliseconds of a frame that a full turn still answers in time, ``[C, Q]``.
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
        """Share out the rest of a wait for weights, in C timelines: each query answers the same fraction of its frames.

        Args:
            state: state of the C timelines; changed.
            others: columns of the queries that may run.
            now: time in milliseconds from which on queries may run, ``[C]``.
            until: time in milliseconds by which all runs must end, ``[C]``.
            sizes: maximum numbers of frames in a turn of each of Q queries, ``[C, Q]``.
            last: time in milliseconds up to which each query in ``others`` has taken frames, ``[C, others]``; changed.
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
        """Return the mean milliseconds of turns in C timelines, interpolated between whole numbers of frames.

        Args:
            frames: mean number of frames of a turn, ``[C]`` for one query, ``[C, K]`` for K queries.
            query: column of the query, or columns of the queries.
        """
        low = frames.astype(np.intp)
        below = self.run_ms[query, low]
        above = self.run_ms[query, np.minimum(low + 1, self.run_ms.shape[1] - 1)]
        found: _Array = below + (frames - low) * (above - below)
        return found

    def _accuracy_of(self, missed: _Array, query: int | _Places) -> _Array:
        """Return the sum of the accuracies of successive frames that an earlier answer stands for, in C timelines.

        Args:
            missed: number of frames since the last frame with an answer of its own, ``[C]`` or ``[C, K]``.
            query: column of the query, or columns of K queries, or one column for each timeline.
        """
        assert self._kept is not None
        whole = np.clip(missed, 0, _OLDEST - 1)
        low = whole.astype(np.intp)
        below, above = self._kept[query, low], self._kept[query, low + 1]
        oldest = self._kept[query, -1] - self._kept[query, -2]
        found: _Array = below + (whole - low) * (above - below) + np.maximum(missed - whole, 0) * oldest
        return found


def _run_table(profile: Profile, queries: Sequence[str]) -> _Array:
    """Return the milliseconds of a turn on 0, 1, 2, ... frames of each of Q queries, ``[Q, frames + 1]``."""
    most = max(profile.batches(query)[-1] for query in queries)
    tables: dict[str, list[float]] = {}
    for query in queries:
        model = profile.queries[query].model
        if model not in tables:
            tables[model] = [0.0, *(profile.run_ms(query, frames) for frames in range(1, most + 1))]
    return np.array([tables[profile.queries[query].model] for query in queries])
