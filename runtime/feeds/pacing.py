"""Timing of a feed's frames, calculated without reading a clock.

The module has the pauses before a source is opened again, how long to wait for a camera's pictures, the filter that
limits the frame rate, when frames of a recording are due, and the time stamps of frames, which only grow.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

__all__ = ["Backoff", "Decimator", "Pacer", "Patience", "Timeline"]


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


class Patience:
    """Factor by which a camera's timeout grows, because some cameras give only one picture in ten seconds or more."""

    _MOST_OPENING = 2.0
    """Largest factor of a camera's timeout while the camera has given no picture."""
    _MOST = 16.0
    """Largest factor of the timeout of a camera that gave pictures before it fell silent."""
    _MANY = 100
    """Number of pictures in one opening after which silence means a failure, and the timeout is the usual one again."""

    def __init__(self) -> None:
        self.factor = 1.0

    def silent(self, pictures: int) -> None:
        """Note that the camera was silent for its timeout, after ``pictures`` pictures in this opening.

        >>> patience, factors = Patience(), []
        >>> for pictures in (0, 0, 1, 3, 500):
        ...     patience.silent(pictures)
        ...     factors.append(patience.factor)
        >>> factors
        [2.0, 2.0, 4.0, 8.0, 1.0]
        """
        if pictures > self._MANY:
            self.factor = 1.0
        else:
            most = self._MOST if pictures else max(self.factor, self._MOST_OPENING)
            self.factor = min(2 * self.factor, most)


class Decimator:
    """Filter that keeps at most ``fps`` frames per second of media time, evenly and without drift; None keeps all."""

    _EARLY = 0.25
    """Fraction of a frame period by which a frame may be early: a camera at the rate limit loses no frame to jitter."""
    _EARLY_ARRIVAL = 0.5
    """Fraction of a frame period by which a frame stamped on arrival may be early: networks make arrivals uneven."""

    def __init__(self, fps: float | None) -> None:
        self._period = 0.0 if fps is None else 1 / fps
        self._next = -inf

    def keep(self, time: float, *, clocked: bool = False) -> bool:
        """Return whether to keep the frame at ``time`` seconds. Times must grow from call to call.

        Args:
            time: seconds of media time.
            clocked: whether the time is a time of arrival.
        """
        early = self._EARLY_ARRIVAL if clocked else self._EARLY
        if time < self._next - early * self._period:
            return False
        # After a pause, no extra frames are kept in place of the frames that did not come.
        late = time - self._next >= self._period
        self._next = (time if late else self._next) + self._period
        return True


class Pacer:
    """Clock of a recording that is played in real time."""

    _MAX_LAG_S = 1.0
    """Maximum seconds by which a recording may be late. After a longer stall it does not catch up."""

    def __init__(self) -> None:
        self._due: float | None = None
        """Time, in seconds of the monotonic clock, at which time 0 of the recording is due."""

    def wait(self, time: float, now: float) -> float:
        """Return the seconds to wait at ``now`` until the frame at ``time`` seconds of the recording is due."""
        # Like a camera, a recording goes on at its normal rate after a stall, and does not hurry to catch up.
        if self._due is None or now - (self._due + time) > self._MAX_LAG_S:
            self._due = now - time
        return max(0.0, self._due + time - now)


class Timeline:
    """Map from a source's time stamps to times that only grow.

    A source's time stamps start anew at each opening, and may jump: recorders join files with gaps, and cameras set
    their clocks. A jump counts as one period of the frame rate, or in a stream as the time that passed on the clock.
    """

    _LEAST = 1e-3
    """Minimum seconds between the times of two frames of a feed."""
    _BACK_S = 1.0
    """Maximum seconds by which a time stamp may be lower than the previous one; a larger step back is a jump."""
    _AHEAD_S = 5.0
    """Maximum seconds from one time stamp to the next, or three usual steps if longer; a larger step is a jump."""

    def __init__(self) -> None:
        self._last: float | None = None
        self._step = 0.0
        """Seconds between the times of the feed's newest two frames, jumps not counted."""
        self._period = 0.0
        self._start = 0.0
        self._offset: float | None = None
        self._clock: float | None = None
        """Time at which the newest frame of a stream came, in seconds of the monotonic clock."""

    def begin(self, at: float | None = None, *, period: float = 0.0) -> None:
        """Note that the source was opened, and choose the time that its next frame gets.

        Args:
            at: time of the next frame, in seconds since the feed's first frame. If left out or too early, the next
                frame follows the newest frame after as many seconds as lay between the two newest frames.
            period: seconds between two frames, as the source states; used until the feed has had two frames.
        """
        self._period = period
        following = 0.0 if self._last is None else self._last + self._usual()
        self._start = following if at is None else max(at, following)
        self._offset = self._clock = None

    def __call__(self, stamp: float, clock: float | None = None) -> float:
        """Return the seconds since the feed's first frame, for a frame with the source's time stamp ``stamp``.

        Args:
            stamp: time stamp of the frame, in seconds.
            clock: time at which the frame came, in seconds of the monotonic clock; None for a recording.
        """
        went_by = 0.0 if clock is None or self._clock is None else clock - self._clock
        self._clock = clock
        if self._offset is None:
            self._offset, self._last = self._start - stamp, self._start
            return self._start
        time = stamp + self._offset
        if self._last is not None:
            step = time - self._last
            most = max(self._AHEAD_S, 3 * max(self._period, self._step)) + went_by
            if step < -self._BACK_S or step > most:
                time = self._last + max(self._usual(), went_by)
                self._offset = time - stamp
            else:
                time = max(time, self._last + self._LEAST)
                self._step = time - self._last
        self._last = time
        return time

    def _usual(self) -> float:
        """Return the seconds that usually lie between two frames of the feed."""
        return max(self._step or self._period, self._LEAST)
