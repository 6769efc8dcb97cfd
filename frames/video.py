"""Reader of the pictures of a video file, stream or camera."""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic
from typing import Any

import av

from ..errors import FeedError
from .lag import Lag
from .reader import Picture, SilentError
from .settings import ReadSettings
from .stream_decoder import StreamDecoder

__all__ = ["VideoReader"]

_MOST_BEHIND_S = 1.0
"""Lag behind the camera in seconds above which pictures are left out, up to a recent key frame."""
_CAUGHT_UP_S = 0.5
"""Maximum seconds that a key frame may be behind the camera for decoding to go on at this key frame."""
_MOST_SKIPPED = 450
"""Maximum number of pictures in a row to leave out while no key frame comes; some streams have none."""
_NO_TIMESTAMPS = 0x80
"""FFmpeg's flag of a format without time stamps (AVFMT_NOTIMESTAMPS). FFmpeg makes some up at 25 per second."""
_SNAPSHOT_S = 1.0
"""Seconds from one snapshot to the next, if the feed states no rate."""


class VideoReader:
    """Reader of the first video stream of a container. Closing the reader closes the container.

    Pictures of a live stream that has no time stamps of its own, such as MJPEG over HTTP, are stamped with the time at
    which they arrive. A live stream that is read more slowly than it comes is read without decoding up to a key frame
    that is recent.

    Args:
        container: PyAV input container.
        settings: number of threads, and hardware.
        live: whether the source is a camera or stream.
        finite: whether the source is a recording.
        fps: rate of the feed, at which snapshots are fetched; one per second if None.
        feed: name of the feed, for the log.
    """

    def __init__(
        self,
        container: Any,
        settings: ReadSettings,
        *,
        live: bool,
        finite: bool,
        fps: float | None = None,
        feed: str = "",
    ) -> None:
        self.finite = finite
        streams = container.streams.video
        self.period = 1 / float((streams and (streams[0].average_rate or streams[0].guessed_rate)) or 25)
        self.behind = 0
        """Number of pictures that were left out because the reader was behind the camera."""
        self.captured: float | None = None
        """Time at which the camera sent a stream's newest picture, in seconds of the monotonic clock; None for a
        recording."""
        self._container, self._timeout_s = container, settings.timeout_s
        self._stream = streams[0] if streams else None
        self._decoder = StreamDecoder(streams[0], settings, live=live and not finite, feed=feed) if streams else None
        form = container.format
        is_image = form.name.endswith("_pipe")
        self.clocked = live and not finite and (is_image or bool(int(form.flags) & _NO_TIMESTAMPS))
        """Whether a stream's time stamps are times of arrival, because the stream has no time stamps of its own."""
        self.again_s = (1 / fps if fps else _SNAPSHOT_S) if live and (is_image or form.name == "mjpeg") else None
        self._lag = Lag(self.period) if live and not finite else None
        self._begin: float | None = None
        self._end: float | None = None
        """Smallest and largest time stamp of a stream that were read, in seconds; None if there was none."""
        self._skipping = False
        self._skipped = 0
        """Number of pictures left out since the last key frame, because the reader was behind the camera."""
        self._has_keys = True
        """Whether a stream seems to have key frames, at which decoding may go on after pictures were left out."""
        self._kept = 0.0
        """Time at which a picture was last decoded while pictures were left out to catch up with the camera, in seconds
        of the monotonic clock."""

    @property
    def corrupt(self) -> int:
        """Number of a stream's pictures that were left out so far because they are damaged."""
        return 0 if self._decoder is None else self._decoder.corrupt

    @property
    def withheld(self) -> int:
        """Number of a stream's good pictures that were left out so far because a key frame was missing."""
        return 0 if self._decoder is None else self._decoder.withheld

    def __iter__(self) -> Iterator[Picture]:
        if self._decoder is None:
            raise FeedError("there is no video stream in it")
        first = end = None
        self._begin = self._end = None
        load = self._decoder.pixels
        for arrived, frame in self._frames(self._decoder):
            stamp = arrived if self.clocked else frame.time
            if stamp is None:
                # Some cameras give no time stamps. In a recording, the end of the last frame is the better guess.
                stamp = (end or 0.0) if self.finite else arrived
            first = stamp if first is None else first
            end = stamp + (float(frame.duration * frame.time_base) if frame.duration else self.period)
            if self._lag is not None:
                self.captured = arrived - self._lag.seconds if self.clocked else self._lag.captured(stamp)
            yield stamp, lambda frame=frame: load(frame)  # type: ignore[misc]
        if first is None and self.corrupt:
            raise FeedError(f"none of its {self.corrupt + self.withheld} pictures can be decoded")
        if first is None and self.withheld:
            raise FeedError(f"none of its {self.withheld} pictures can be decoded: there is no key frame")
        promised = _promised_seconds(self._container, self._stream) if self.finite else None
        read = 0.0 if self._begin is None or self._end is None else self._end - self._begin + self.period
        if promised is not None and read < promised - max(0.5, 2 * self.period):
            raise FeedError(f"ends after {read:.1f} s of {promised:.1f} s; the file is truncated or damaged")

    def _frames(self, decoder: StreamDecoder) -> Iterator[tuple[float, Any]]:
        """Yield each good frame of a stream with its time of arrival in seconds of the monotonic clock: (time, PyAV
        frame)."""
        began = monotonic()
        for packet in self._packets():
            now = monotonic()
            if packet.size and self._lag is not None:
                stamp = packet.dts if packet.dts is not None else packet.pts
                seconds = None if self.clocked or stamp is None else float(stamp * packet.time_base)
                self._lag.note(seconds, now, now - began)
                if self._is_behind(packet, now):
                    self.behind += 1
                    decoder.hold()
                    began = monotonic()
                    continue
            if packet.size and packet.pts is not None:
                # Pictures that are left out count too: the times say how much of the file was read.
                shown = float(packet.pts * packet.time_base)
                self._begin = shown if self._begin is None else min(self._begin, shown)
                self._end = shown if self._end is None else max(self._end, shown)
            for frame in decoder.decode(packet):
                yield now, frame
            began = monotonic()

    def _packets(self) -> Iterator[Any]:
        """Yield the packets of a video stream.

        Raises:
            SilentError: no packet came for as long as the timeout.
        """
        try:
            yield from self._container.demux(self._stream)
        except (av.error.ExitError, av.error.TimeoutError) as error:
            raise SilentError(f"no picture for {self._timeout_s:g} s") from error

    def _is_behind(self, packet: Any, now: float) -> bool:
        """Return whether to leave out a packet of a live stream because the reader is behind the camera."""
        assert self._lag is not None
        self._has_keys = self._has_keys or packet.is_keyframe
        if not self._skipping:
            self._skipping = self._has_keys and self._lag.behind(_MOST_BEHIND_S)
            self._kept, self._skipped = now, 0
        if not self._skipping:
            return False
        self._skipped += 1
        if packet.is_keyframe:
            self._skipped = 0
            caught_up = self._lag.seconds <= _CAUGHT_UP_S
            # One picture a second, so that a feed that never catches up is not silent.
            if caught_up or now - self._kept >= _MOST_BEHIND_S:
                self._skipping, self._kept = not caught_up, now
                return False
        self._skipping = self._has_keys = self._skipped < _MOST_SKIPPED
        return True

    def close(self) -> None:
        self._container.close()


def _promised_seconds(container: Any, stream: Any) -> float | None:
    """Return the seconds of video that a container's headers promise; None if the headers do not say."""
    total = container.duration / av.time_base if container.duration else None
    if total is not None and "matroska" in container.format.name and (container.start_time or 0) > 0:
        # Matroska's duration counts from 0, also where the first picture is much later.
        total -= container.start_time / av.time_base
    own = float(stream.duration * stream.time_base) if stream.duration else None
    if "mp4" in container.format.name:
        # The shorter one: an edit list shows less than the track holds, and sound may be longer than pictures.
        known = [seconds for seconds in (total, own) if seconds is not None]
        return min(known) if known else None
    if stream.frames and stream.average_rate:
        # For a truncated AVI the durations say what the file still holds, but the count of frames what it should.
        return float(stream.frames / stream.average_rate)
    return total if len(container.streams) == 1 else None
