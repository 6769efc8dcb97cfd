"""Statistics of a run, and the file summary.json that states them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..feeds import Feed
from ..feeds.feed_state import StateName
from ..planning.promises import Promise

__all__ = [
    "FeedStats",
    "Latency",
    "MemoryUse",
    "PlanStats",
    "QueryStats",
    "RunCounts",
    "RunStats",
    "Summary",
    "SwapStats",
]


@dataclass(frozen=True, slots=True)
class Latency:
    """Percentiles of the milliseconds from a frame's arrival to its result; None if no frame was processed."""

    p50: float | None = None
    p90: float | None = None
    p99: float | None = None

    @classmethod
    def of(cls, milliseconds: Sequence[float]) -> Latency:
        """Return the percentiles of latencies, which are given in milliseconds and in any order."""
        if not milliseconds:
            return cls()
        p50, p90, p99 = np.percentile(np.asarray(milliseconds, np.float64), (50, 90, 99)).tolist()
        return cls(p50, p90, p99)

    def to_json(self) -> dict[str, float | None]:
        """Return the ``latency_ms`` object of summary.json: percentiles in milliseconds, rounded to a microsecond."""
        return {name: _rounded(getattr(self, name)) for name in ("p50", "p90", "p99")}


@dataclass(frozen=True, slots=True)
class RunCounts:
    """Counts of the runs of a query's model that answered frames of the query."""

    runs: int = 0
    frames: int = 0
    """Number of frames in all runs that are counted together, frames of other queries included."""

    @property
    def frames_per_run(self) -> float | None:
        """Mean number of frames that really ran together; None if there was no run."""
        return self.frames / self.runs if self.runs else None

    def __add__(self, other: RunCounts) -> RunCounts:
        return RunCounts(self.runs + other.runs, self.frames + other.frames)


@dataclass(frozen=True, slots=True)
class QueryStats:
    """Statistics of one query in a run."""

    feed: str
    frames: int
    """Number of frames that the query's feed delivered during the run."""
    processed: int
    """Number of frames that the query answered."""
    errors: int = 0
    """Number of frames on which the query failed; these frames count as skipped."""
    last_error: str | None = None
    """Message of the query's newest failure; None if it never failed."""
    gave_up: bool = False
    """Whether the query failed too often in a row, was given up, and has not answered since."""
    given_up: int = 0
    """Number of times that the query was given up; it is tried again after a pause."""
    paused: bool = False
    """Whether the user has paused the query."""
    latency: Latency = field(default_factory=Latency)
    ran: RunCounts = RunCounts()
    """Counts of the runs that answered frames of the query; none if they are not known."""

    @property
    def skipped(self) -> int:
        """Number of frames of the query's feed that the query did not answer."""
        return self.frames - self.processed


@dataclass(frozen=True, slots=True)
class FeedStats:
    """Statistics of one feed in a run."""

    delivered: int
    """Number of frames that the feed delivered."""
    restarts: int = 0
    """Number of times that the feed's source was opened again, after an end or a failure."""
    corrupt: int = 0
    """Number of the feed's pictures that were left out because they are damaged or could not be converted."""
    error: str | None = None
    """Reason of the feed's last restart, or of its end; None if there was no failure."""
    withheld: int = 0
    """Number of the feed's good pictures that were held back until a key frame, as a picture before was damaged."""
    behind: int = 0
    """Number of the feed's pictures that were left out because the feed was behind its camera."""
    left_out: int = 0
    """Number of good pictures that the feed's ``fps`` left out. They are not part of ``captured``."""
    lag_ms: float = 0.0
    """Milliseconds from the moment when the camera sent the feed's newest frame to the frame's delivery."""
    state: StateName = "starting"

    @property
    def captured(self) -> int:
        """Number of pictures that the feed read, without those that ``fps`` left out."""
        return self.delivered + self.corrupt + self.withheld + self.behind

    @classmethod
    def of(cls, feed: Feed) -> FeedStats:
        """Return the statistics of a feed up to now."""
        counts = feed.counts
        return cls(
            delivered=counts.delivered,
            restarts=counts.restarts,
            corrupt=counts.corrupt,
            error=feed.error,
            withheld=counts.withheld,
            behind=counts.behind,
            left_out=counts.left_out,
            lag_ms=feed.lag_ms,
            state=feed.state,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the feed's object in summary.json: captured = frames + corrupt + withheld + behind, always."""
        return {
            "frames": self.delivered,
            "captured": self.captured,
            "restarts": self.restarts,
            "corrupt": self.corrupt,
            "withheld": self.withheld,
            "behind": self.behind,
            "left_out": self.left_out,
            "lag_ms": _rounded(self.lag_ms),
            "state": self.state,
            "error": self.error,
        }


@dataclass(frozen=True, slots=True)
class PlanStats:
    """Plan that the runner followed at the end of the run, and the number of new plans."""

    order: Sequence[str] = ()
    """Turns of the plan in their order, each a query or several (``a+b``) that run together."""
    batches: Mapping[str, int] = field(default_factory=dict)
    """Turn -> maximum number of frames of each of its queries."""
    replans: int = 0
    """Number of new plans that were made during the run."""
    promised: Mapping[str, Promise] = field(default_factory=dict)
    """Query -> what the plan promises it; empty if nothing was planned."""


@dataclass(frozen=True, slots=True)
class RunStats:
    """Statistics that the runner collects: everything in a summary except backend and memory."""

    seconds: float
    queries: Mapping[str, QueryStats]
    feeds: Mapping[str, FeedStats]
    blocked_ms: float = 0.0
    """Milliseconds in which no model ran, because the next query's weights were still being loaded."""
    plan: PlanStats = field(default_factory=PlanStats)


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Budget and peak of the bytes of weights in memory during a run."""

    budget: int | None = None
    """Maximum bytes of weights that were allowed in memory; None if there was no limit."""
    peak: int = 0
    """Maximum bytes of weights that were in memory at once."""


@dataclass(frozen=True, slots=True)
class SwapStats:
    """Number, bytes and waiting time of the segment loads during a run."""

    count: int = 0
    """Number of segment loads during the run; a segment counts each time that it is loaded."""
    bytes: int = 0
    """Total bytes of all segment loads during the run."""
    blocked_ms: float = 0.0
    """Milliseconds in which no model ran, because the next query's weights were still being loaded."""


@dataclass(frozen=True, slots=True)
class Summary:
    """Statistics of a run, its backend and its memory: the content of summary.json."""

    run: RunStats
    backend: str
    memory: MemoryUse = field(default_factory=MemoryUse)
    swaps: SwapStats = field(default_factory=SwapStats)
    policy: str = "gemel"
    run_id: str = ""
    """Identifier of the run, which stands in every line of its results."""
    outputs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Name of an output of the run -> its counts and state."""
    stems: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Id of a shared stem -> queries that share it, and counts of its runs; those of the bundle that runs last."""
    stopped: bool = False
    """Whether the run was stopped from outside, such as by a signal."""
    unwritten: str | None = None
    """Reason why summary.json could not be written at the end; None if it was, or was not wanted."""

    @property
    def failures(self) -> dict[str, str]:
        """Name -> reason, of the queries and outputs that failed, and of summary.json if it could not be written.

        A query failed if it was given up, failed on every frame, or its feed gave no frame. An output failed if it did
        not work at the end of the run.

        A camera that was opened again and then delivered frames does not count as a failure. A recording that could not
        be read to its end does. If the run was stopped from outside, a camera that gave no frame until then does not.
        """
        failed: dict[str, str] = {}
        for name, query in self.run.queries.items():
            feed = self.run.feeds[query.feed]
            if query.gave_up or (query.errors and not query.processed):
                failed[name] = query.last_error or "given up"
            elif feed.error is not None and (feed.state == "failed" or (feed.delivered == 0 and not self.stopped)):
                named = feed.error.startswith("feed ")
                failed[name] = feed.error if named else f"feed {query.feed}: {feed.error}"
        for name, output in self.outputs.items():
            if output["state"] == "failing":
                failed[f"output {name}"] = str(output["error"])
        if self.unwritten is not None:
            failed["summary"] = self.unwritten
        return failed

    def to_json(self) -> dict[str, Any]:
        """Return the content of summary.json as a dictionary. For every query, frames = processed + skipped."""
        run = self.run
        return {
            "run": self.run_id,
            "seconds": _rounded(run.seconds),
            "backend": self.backend,
            "memory": {"budget": self.memory.budget, "peak": self.memory.peak},
            "queries": {name: _query(stats, run.seconds) for name, stats in run.queries.items()},
            "feeds": {name: stats.to_json() for name, stats in run.feeds.items()},
            "swaps": {
                "count": self.swaps.count,
                "bytes": self.swaps.bytes,
                "blocked_ms": _rounded(self.swaps.blocked_ms),
            },
            "plan": {
                "policy": self.policy,
                "order": list(run.plan.order),
                "batches": dict(run.plan.batches),
                "replans": run.plan.replans,
                "promised": {name: promise.to_json() for name, promise in run.plan.promised.items()},
            },
            "stems": {stem: dict(counts) for stem, counts in self.stems.items()},
            "outputs": {name: dict(output) for name, output in self.outputs.items()},
        }


def _query(stats: QueryStats, seconds: float) -> dict[str, Any]:
    return {
        "feed": stats.feed,
        "frames": stats.frames,
        "processed": stats.processed,
        "skipped": stats.skipped,
        "fps": _rounded(stats.processed / seconds if seconds > 0 else 0.0),
        "latency_ms": stats.latency.to_json(),
        "runs": stats.ran.runs,
        "frames_per_run": _rounded(stats.ran.frames_per_run),
        "errors": stats.errors,
        "last_error": stats.last_error,
        "gave_up": stats.gave_up,
        "given_up": stats.given_up,
        "paused": stats.paused,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
