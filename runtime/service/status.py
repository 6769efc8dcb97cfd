"""Status of a run while it goes on: what ``/status``, ``/metrics`` and the live page show."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from time import monotonic, time
from typing import Any

from ...frames.frame import Frame
from ..decode.results import Result
from ..loop.summary import RunStats, Summary
from ..sinks.sink import Sink

__all__ = ["STALLED_S", "AnswerTimes", "RunStatus", "SegmentStatus"]

STALLED_S = 60.0
"""Seconds without a sign of life from the runner after which a run counts as unhealthy."""


@dataclass(frozen=True, slots=True)
class SegmentStatus:
    """One segment of the blob: which models use it, and whether it is in memory."""

    name: str
    bytes: int
    models: Sequence[str]
    """Models that use the tensors of the segment; more than one if the segment is shared."""
    resident: bool


class AnswerTimes(Sink):
    """Sink that records when each query was last answered."""

    pixels, queued = False, False

    def __init__(self) -> None:
        self.last: dict[str, float] = {}
        """Query -> time of its newest answer, in seconds of the monotonic clock."""

    def on_result(self, query: str, frame: Frame, result: Result, latency_ms: float) -> None:
        self.last[query] = monotonic()


def _nothing_yet() -> Summary:
    """Return the statistics of a run that has not begun."""
    return Summary(RunStats(0.0, {}, {}), "")


@dataclass
class RunStatus:
    """Source of a run's status. The runner calls :meth:`beat`; any thread may call :meth:`to_json`."""

    version: str
    bundle: Callable[[], Path]
    """Function that returns the folder of the running bundle."""
    segments: Callable[[], Sequence[SegmentStatus]] = tuple
    """Function that returns the status of every segment of the bundle's blob."""
    answers: AnswerTimes = field(default_factory=AnswerTimes)
    details: Callable[[], Mapping[str, Any]] = dict
    """Function that returns further fields of the status, such as the outcome of the last reload."""
    started: float = field(default_factory=time)
    """Unix time in seconds at which the run started."""
    ready: bool = False
    """Whether models are loaded and the runner takes frames."""
    _summarise: Callable[[], Summary] = _nothing_yet
    _beaten: float = field(default_factory=monotonic)
    _lock: Lock = field(default_factory=Lock)

    def begin(self, summarise: Callable[[], Summary]) -> None:
        """Note that the run takes frames from now on.

        Args:
            summarise: function that returns the run's statistics so far.
        """
        self._summarise = summarise
        self.beat()
        self.ready = True

    def beat(self) -> None:
        """Record a sign of life of the runner."""
        self._beaten = monotonic()

    @property
    def silent_s(self) -> float:
        """Seconds since the runner's last sign of life."""
        return monotonic() - self._beaten

    @property
    def healthy(self) -> bool:
        """Whether the runner has given a sign of life in the last :data:`STALLED_S` seconds, or is not ready yet.

        Preparing models for a device may take many minutes.
        """
        return not self.ready or self.silent_s < STALLED_S

    def words(self) -> str:
        """Return one line about the run, for a service manager."""
        if not self.ready:
            return "preparing models"
        run = self._summarise().run
        processed, frames = (
            sum(getattr(each, name) for each in run.queries.values()) for name in ("processed", "frames")
        )
        running = sum(feed.state == "running" for feed in run.feeds.values())
        answers = f"{len(run.queries)} queries answered {processed} of {frames} frames"
        return f"{answers}; {running} of {len(run.feeds)} feeds run"

    def to_json(self) -> dict[str, Any]:
        """Return the status as JSON fields: those of summary.json so far, and readiness, health, times and segments."""
        with self._lock:
            found = self._summarise().to_json()
            now = monotonic()
            for name, query in found["queries"].items():
                last = self.answers.last.get(name)
                query["age_s"] = None if last is None else round(now - last, 3)
            return {
                **found,
                "version": self.version,
                "bundle": str(self.bundle()),
                "started": round(self.started, 3),
                "uptime_s": round(time() - self.started, 3),
                "ready": self.ready,
                "healthy": self.healthy,
                "segments": [
                    {"name": each.name, "bytes": each.bytes, "models": list(each.models), "resident": each.resident}
                    for each in self.segments()
                ],
                **self.details(),
            }
