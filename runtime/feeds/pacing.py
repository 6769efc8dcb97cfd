"""When frames are due: decisions about time, without a clock."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

__all__ = ["Backoff", "Decimator", "Timeline"]


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pauses between attempts to reach a source again, in seconds: ``first``, then doubled up to ``limit``."""

    first: float = 0.5
    limit: float = 10.0

    def delay(self, attempt: int) -> float:
        """The pause before attempt 0, 1, 2, ...

        >>> [Backoff().delay(attempt) for attempt in (0, 1, 2, 9)]
        [0.5, 1.0, 2.0, 10.0]
        """
        # A camera may be away for days; the exponent must not grow with it.
        return min(self.limit, self.first * 2.0 ** min(attempt, 32))


class Decimator:
    """Keeps at most ``fps`` frames a second of media, evenly and without drift; all when ``fps`` is None."""

    _EARLY = 0.25
    """Of a period: a camera of just this rate loses no frame to stamps that are not quite even."""

    def __init__(self, fps: float | None) -> None:
        self._period = 0.0 if fps is None else 1 / fps
        self._next = -inf

    def keep(self, time: float) -> bool:
        """Whether the frame at ``time`` (seconds, growing from call to call) is one of those wanted."""
        if time < self._next - self._EARLY * self._period:
            return False
        # After a pause the frames that did not come are not made up for.
        late = time - self._next >= self._period
        self._next = (time if late else self._next) + self._period
        return True


class Timeline:
    """Maps the time stamps of a source, which start anew at each opening and may jump back, to one that grows."""

    _LEAST = 1e-3

    def __init__(self) -> None:
        self._last: float | None = None
        self._step = 0.0
        self._start = 0.0
        self._offset: float | None = None

    def begin(self, at: float | None = None, *, period: float = 0.0) -> None:
        """The source was opened: its next frame is at ``at`` seconds, or follows the last one as frames did before.

        ``period`` is the source's own distance between frames, for one whose only frame has none.
        """
        following = 0.0 if self._last is None else self._last + max(self._step or period, self._LEAST)
        self._start = following if at is None else max(at, following)
        self._offset = None

    def __call__(self, stamp: float) -> float:
        """Seconds since the feed's first frame for a frame that its source stamps ``stamp`` seconds."""
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
