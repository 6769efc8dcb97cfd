"""What a run did: values that the pipeline counts, and summary.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError

__all__ = ["FeedStats", "Latency", "MemoryUse", "PlanStats", "QueryStats", "RunStats", "Summary", "SwapStats"]


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds from a frame's arrival to its result; None where no frame was processed."""

    p50: float | None = None
    p90: float | None = None
    p99: float | None = None

    @classmethod
    def of(cls, milliseconds: Sequence[float]) -> Latency:
        if not milliseconds:
            return cls()
        p50, p90, p99 = np.percentile(np.asarray(milliseconds, np.float64), (50, 90, 99)).tolist()
        return cls(p50, p90, p99)

    def to_json(self) -> dict[str, float | None]:
        return {name: _rounded(getattr(self, name)) for name in ("p50", "p90", "p99")}


@dataclass(frozen=True, slots=True)
class QueryStats:
    """One query's counts; ``frames`` are those that its feed delivered during the run."""

    feed: str
    frames: int
    processed: int
    errors: int = 0
    """Frames whose processing failed; they count as skipped."""
    last_error: str | None = None
    gave_up: bool = False
    """It failed too often in a row and was left out from then on."""
    latency: Latency = field(default_factory=Latency)

    @property
    def skipped(self) -> int:
        return self.frames - self.processed


@dataclass(frozen=True, slots=True)
class FeedStats:
    frames: int
    restarts: int = 0
    corrupt: int = 0
    error: str | None = None
    """Why it was last restarted or ended, if that was a failure."""


@dataclass(frozen=True, slots=True)
class PlanStats:
    """What the runner followed at the end."""

    order: Sequence[str] = ()
    batches: Mapping[str, int] = field(default_factory=dict)
    """Frames of each query in its turn, at most."""
    replans: int = 0
    """How often it was made anew."""


@dataclass(frozen=True, slots=True)
class RunStats:
    """What the pipeline itself knows of a run."""

    seconds: float
    queries: Mapping[str, QueryStats]
    feeds: Mapping[str, FeedStats]
    blocked_ms: float = 0.0
    """Time in which nothing ran, as weights were awaited."""
    plan: PlanStats = field(default_factory=PlanStats)


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Bytes of weights: what was allowed (None: no limit) and the most that was in memory at once."""

    budget: int | None = None
    peak: int = 0


@dataclass(frozen=True, slots=True)
class SwapStats:
    """Segments that became resident during the run: how many, their bytes, and how long models waited for them."""

    count: int = 0
    bytes: int = 0
    blocked_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Summary:
    """A run and the device it was on, as summary.json has it."""

    run: RunStats
    backend: str
    memory: MemoryUse = field(default_factory=MemoryUse)
    swaps: SwapStats = field(default_factory=SwapStats)
    policy: str = "gemel"

    @property
    def failures(self) -> dict[str, str]:
        """Queries that the run did not answer, and why: given up, or a feed that never gave a frame.

        A camera that was restarted is no failure.
        """
        failed: dict[str, str] = {}
        for name, query in self.run.queries.items():
            feed = self.run.feeds[query.feed]
            if query.gave_up:
                failed[name] = query.last_error or "given up"
            elif feed.error is not None and feed.frames == 0:
                failed[name] = feed.error
        return failed

    def to_json(self) -> dict[str, Any]:
        """The object of summary.json. For every query, frames = processed + skipped."""
        run = self.run
        return {
            "seconds": _rounded(run.seconds),
            "backend": self.backend,
            "memory": {"budget": self.memory.budget, "peak": self.memory.peak},
            "queries": {name: _query(stats, run.seconds) for name, stats in run.queries.items()},
            "feeds": {
                name: {
                    "frames": stats.frames,
                    "restarts": stats.restarts,
                    "corrupt": stats.corrupt,
                    "error": stats.error,
                }
                for name, stats in run.feeds.items()
            },
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
            },
        }

    def write(self, path: Path) -> None:
        """Write summary.json.

        Raises:
            InputError: the file cannot be written.
        """
        try:
            path.write_text(json.dumps(self.to_json(), indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise InputError(f"{path}: cannot write the summary: {error.strerror}") from error


def _query(stats: QueryStats, seconds: float) -> dict[str, Any]:
    return {
        "feed": stats.feed,
        "frames": stats.frames,
        "processed": stats.processed,
        "skipped": stats.skipped,
        "fps": _rounded(stats.processed / seconds if seconds > 0 else 0.0),
        "latency_ms": stats.latency.to_json(),
        "errors": stats.errors,
        "last_error": stats.last_error,
        "gave_up": stats.gave_up,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
