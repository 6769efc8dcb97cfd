"""Lag of a live stream: by how much the newest picture that was read is older than the newest one that was sent."""

from __future__ import annotations

__all__ = ["Lag"]

_JUMP_S = 5.0
"""Seconds by which a time stamp may leave the clock before it counts as a jump of the camera's clock."""
_DRIFT_S = 30.0
"""Seconds in which the map from time stamps to the clock follows a camera whose clock is slower."""
_EDGE_S = (0.005, 0.1)
"""Least and most seconds of waiting for a packet that show that the reader has caught up with the camera."""


class Lag:
    """Map from a stream's time stamps to the monotonic clock, made while packets are read.

    A packet is never older than its arrival. The packet that came soonest after its time stamp therefore says where
    the camera's clock lies on ours. While the reader has to wait for packets, it is not behind, and the map follows
    the drift of the camera's clock. While it does not wait, packets lie in buffers: then their age is the lag.

    Args:
        period: expected seconds between two pictures.
    """

    def __init__(self, period: float) -> None:
        self.seconds = 0.0
        """Seconds by which the newest packet was older than a packet that is read as soon as it is sent."""
        self._waits = min(max(period / 2, _EDGE_S[0]), _EDGE_S[1])
        self._offset: float | None = None
        """Seconds of the monotonic clock at time stamp 0."""
        self._stamp = self._now = self._edge = 0.0
        self._step = period

    def note(self, stamp: float | None, now: float, waited: float) -> None:
        """Note a packet.

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
            # How old the buffered pictures are is unknown; at most as old as the last wait.
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
        """Return when the camera sent the picture with a time stamp, in seconds of the monotonic clock."""
        return self._now if self._offset is None else min(self._now, stamp + self._offset)

    def behind(self, most: float) -> bool:
        """Return whether the reader is more than ``most`` seconds behind, and has not waited for that long."""
        return self.seconds > most and self._now - self._edge >= most
