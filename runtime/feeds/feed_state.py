"""State and counts of a feed: what becomes of every picture, and one line in the log whenever the state changes."""

from __future__ import annotations

import logging
from time import monotonic
from typing import Literal

from ...frames.reader import Reader

__all__ = ["FeedCounts", "FeedState", "StateName"]

_log = logging.getLogger(__name__)

StateName = Literal["starting", "running", "reconnecting", "paused", "ended", "failed"]

_REMIND_S = 600.0
"""Seconds after which a reason of a feed's failure that stays the same is logged again."""


class FeedCounts:
    """Counts of the pictures of a feed, over all openings of its source, and of restarts."""

    def __init__(self) -> None:
        self.delivered = 0
        """Number of the feed's pictures that were delivered as frames."""
        self.left_out = 0
        """Number of good pictures that the feed's rate limit left out."""
        self.unconverted = 0
        """Number of the feed's pictures that were decoded, but whose pixels could not be converted to BGR."""
        self.restarts = 0
        """Number of times that the feed's source was opened again, after an end or a failure."""
        self.reader: Reader | None = None
        """Reader of the feed's source that is open now; None while the source is closed."""
        self._closed = [0, 0, 0]
        """Numbers of pictures, summed over the feed's closed readers: ``corrupt``, ``withheld`` and ``behind``."""

    @property
    def corrupt(self) -> int:
        """Number of the feed's pictures that were left out because they are damaged or cannot be converted."""
        reader = self.reader
        return self.unconverted + self._closed[0] + (0 if reader is None else reader.corrupt)

    @property
    def withheld(self) -> int:
        """Number of the feed's good pictures that were left out because a key frame was missing."""
        reader = self.reader
        return self._closed[1] + (0 if reader is None else reader.withheld)

    @property
    def behind(self) -> int:
        """Number of the feed's pictures that were left out because the feed was behind its camera."""
        reader = self.reader
        return self._closed[2] + (0 if reader is None else reader.behind)

    def close_reader(self) -> None:
        """Add the counts of the feed's open reader to those of its closed readers, before the reader is closed."""
        self._closed, self.reader = [self.corrupt - self.unconverted, self.withheld, self.behind], None


class FeedState:
    """State of a feed, its last failure and its lag. A change of state is one line in the log.

    Args:
        feed: name of the feed.
    """

    def __init__(self, feed: str) -> None:
        self.name: StateName = "starting"
        self.error: str | None = None
        """Reason of the feed's last restart, or of its end; None if there was no failure."""
        self.lag_ms = 0.0
        """Milliseconds from the moment when a camera sent the feed's newest frame to the frame's delivery."""
        self._feed = feed
        self._since = monotonic()
        """Time at which the feed was last running, in seconds of the monotonic clock."""
        self._said: dict[str, float] = {}
        """Key of a log line -> time at which such a line was last written, in seconds of the monotonic clock."""
        self._behind = 0

    def deliver(self, lag_s: float, behind: int) -> None:
        """Note that a frame of the feed was delivered.

        Args:
            lag_s: seconds from the moment when the camera sent the frame to its delivery.
            behind: number of pictures left out so far because the feed was behind.
        """
        self.lag_ms = lag_s * 1e3
        if self.name == "reconnecting":
            _log.warning("feed %s: pictures again after %.1f s", self._feed, monotonic() - self._since)
            self._said.clear()
        self.name, self._since = "running", monotonic()
        if behind > self._behind:
            count, self._behind = behind - self._behind, behind
            text = "pictures were left out, because they cannot be decoded as fast as the camera sends them"
            self.note(f"{count} {text}", key="behind")

    def restart(self, reason: str, delay: float) -> None:
        """Note that the feed's source failed or ended, and that it is opened again after ``delay`` seconds."""
        self.error, self.name = reason, "reconnecting"
        self.note(f"{reason}; trying again in {delay:.1f} s", key=reason)

    def end(self, reason: str | None) -> None:
        """Note that the feed ends. ``reason`` is the failure that ended it; None if there was none."""
        self.name = "ended" if reason is None else "failed"
        if reason is not None:
            self.error = reason
            _log.warning("feed %s: ended: %s", self._feed, reason)

    def note(self, text: str, *, key: str | None = None) -> None:
        """Log a line about the feed, unless a line of the same ``key`` was logged in the last ten minutes."""
        now = monotonic()
        if now - self._said.get(key or text, -_REMIND_S) >= _REMIND_S:
            # Reasons are few, but a camera may put numbers into them.
            if len(self._said) > 100:
                self._said.clear()
            self._said[key or text] = now
            _log.warning("feed %s: %s", self._feed, text)
