"""Lag of a live stream: how many seconds the reader is behind the camera."""

from __future__ import annotations

__all__ = ["Lag"]

_JUMP_S = 5.0
"""Maximum seconds from one time stamp of a live stream to the next; a larger step counts as a jump of the camera's
clock."""
_DRIFT_S = 30.0
"""Time constant in seconds with which the map from time stamps to our clock follows a camera whose clock runs
slower."""
_EDGE_S = (0.005, 0.1)
"""Minimum and maximum, in seconds, of the wait for a packet that shows that the reader has caught up with the camera;
usually half the time from one picture to the next."""


class Lag:
    """Map from a stream's time stamps to the monotonic clock, made while packets are read.

    A packet is never older than its arrival. The packet that came soonest after its time stamp therefore says where
    the camera's clock lies on ours. A reader that has to wait for packets is not behind, and the map follows the drift
    of the camera's clock. If the reader never waits, packets lie in buffers, and their age is the lag.

    Args:
        period: expected seconds between two pictures.
    """

    def __init__(self, period: float) -> None:
        self.seconds = 0.0
        """Lag in seconds of the reader behind the camera: how much later than possible the newest packet was read."""
        self._waits = min(max(period / 2, _EDGE_S[0]), _EDGE_S[1])
        self._offset: float | None = None
        """Time of the monotonic clock, in seconds, that corresponds to a stream's time stamp 0; None before the first
        packet."""
        self._stamp = self._now = self._edge = 0.0
        self._step = period

    def note(self, stamp: float | None, now: float, waited: float) -> None:
        """Update the lag behind the camera for a packet of a stream that was read.

        Args:
            stamp: time stamp of the packet in seconds; None if the stream has no real time stamps.
            now: time at which the packet was read, in seconds of the monotonic clock.
            waited: seconds for which the reader waited for the packet.
        """
        since = now - self._edge
        at_edge = not self._edge or waited >= self._waits
        if at_edge:
            self._edge = now
        if stamp is None:
            # The age of buffered pictures is unknown. They came after the reader last had to wait, which limits their
            # age.
            self._now, self.seconds = now, max(0.0, now - self._edge - self._waits)
            return
        step = stamp - self._stamp
        if self._offset is None:
            self._offset = now - stamp
        elif step < -_JUMP_S / 5 or step > max(_JUMP_S, 3 * self._step) + now - self._now:
            self._offset = now - stamp - self.seconds
        else:
            late = now - stamp - self._offset
            if late < 0:
                self._offset += late
            elif at_edge:
                self._offset += late * min(1.0, since) / _DRIFT_S
            self._step = max(step, 0.0)
        self._stamp, self._now = stamp, now
        self.seconds = now - stamp - self._offset

    def captured(self, stamp: float) -> float:
        """Return the time at which the camera sent the picture with the given time stamp, in seconds of the monotonic
        clock."""
        return self._now if self._offset is None else min(self._now, stamp + self._offset)

    def behind(self, most: float) -> bool:
        """Return whether the lag behind the camera is above ``most`` seconds, and the reader did not wait for a packet
        in the last ``most`` seconds."""
        return self.seconds > most and self._now - self._edge >= most
