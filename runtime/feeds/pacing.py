"""Timing of a feed's frames, calculated without reading a clock.

The module has the pauses before a source is opened again, the filter that limits the frame rate, and the time stamps of
frames, which only grow.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

__all__ = ["Backoff", "Decimator", "Timeline"]


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pauses between attempts to open a source again, in seconds: ``first``, then doubled up to ``limit``."""

    first: float = 0.5
    limit: float = 10.0

    def delay(self, attempt: int) -> float:
        """Return the pause in seconds before an attempt to open the source again; the first attempt has number 0.

        >>> [Backoff().delay(attempt) for attempt in (0, 1, 2, 9)]
        [0.5, 1.0, 2.0, 10.0]
        """
        # A camera may be away for days, and a large exponent would overflow.
        return min(self.limit, self.first * 2.0 ** min(attempt, 32))


class Decimator:
    """Filter that keeps at most ``fps`` frames per second of media time, evenly and without drift; all if None."""

    _EARLY = 0.25
    """Fraction of a period by which a frame may be early: a camera of exactly this rate loses no frame to jitter."""

    def __init__(self, fps: float | None) -> None:
        self._period = 0.0 if fps is None else 1 / fps
        self._next = -inf

    def keep(self, time: float) -> bool:
        """Return whether to keep the frame at ``time`` seconds. Times must grow from call to call."""
        if time < self._next - self._EARLY * self._period:
            return False
        # After a pause, no extra frames are kept in place of the frames that did not come.
        late = time - self._next >= self._period
        self._next = (time if late else self._next) + self._period
        return True


class Timeline:
    """Map from a source's time stamps to times that only grow.

    A source's stamps start anew at each opening, and may jump back.
    """

    _LEAST = 1e-3
    """Minimum seconds between the times of two frames."""

    def __init__(self) -> None:
        self._last: float | None = None
        self._step = 0.0
        self._start = 0.0
        self._offset: float | None = None

    def begin(self, at: float | None = None, *, period: float = 0.0) -> None:
        """Note that the source was opened, and choose the time that its next frame gets.

        Args:
            at: time of the next frame, in seconds since the feed's first frame. If left out or too early, the next
                frame follows the newest frame after as many seconds as lay between the two newest frames.
            period: seconds between two frames, as the source states; used until the feed has had two frames.
        """
        following = 0.0 if self._last is None else self._last + max(self._step or period, self._LEAST)
        self._start = following if at is None else max(at, following)
        self._offset = None

    def __call__(self, stamp: float) -> float:
        """Return the seconds since the feed's first frame, for a frame with the source's time stamp ``stamp``."""
        if self._offset is None:
            self._offset = self._start - stamp
        time = stamp + self._offset
        if self._last is not None:
            if time <= self._last:
                self._offset += self._last + self._LEAST - time
                time = self._last + self._LEAST
            self._step = time - self._last
        self._last = time
        return time
