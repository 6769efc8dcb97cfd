"""Counts of one output of a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["SinkCounts"]


@dataclass(frozen=True, slots=True)
class SinkCounts:
    """Counts of one output: ``offered`` is the sum of ``written``, ``dropped``, ``failed`` and ``waiting``."""

    written: int = 0
    dropped: int = 0
    """Number of events that the output gave up because its queue was full or the run ended."""
    failed: int = 0
    """Number of events that the output refused."""
    waiting: int = 0
    """Number of events in the output's queue, or being written now."""
    error: str | None = None
    """Reason of the output's last failure; None if there was none."""
    state: str = "working"
    """State of the output: ``working``, ``behind`` (too slow: events are dropped) or ``failing``."""

    @property
    def offered(self) -> int:
        """Number of all events that were given to the output."""
        return self.written + self.dropped + self.failed + self.waiting

    def to_json(self) -> dict[str, Any]:
        """Return the entry of the output in summary.json."""
        return {"offered": self.offered, **asdict(self)}
