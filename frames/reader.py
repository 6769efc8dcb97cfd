"""Reading: an opened source as a sequence of pictures. Corrupt frames are counted and left out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import av
import cv2
import numpy as np

from ..errors import FeedError
from .frame import Image

__all__ = ["IMAGE_SUFFIXES", "FolderReader", "Picture", "Reader", "VideoReader", "reason_of"]

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})

Picture = tuple[float, Callable[[], Image]]
"""The source's time stamp in seconds, and a function that gives the pixels: frames nobody wants are not converted."""

# A camera joined in the middle of a group of pictures gives errors until the next key frame, which may be
# some seconds away. Ten seconds of nothing else is a broken stream.
_MAX_CORRUPT_RUN = 300


class Reader(Protocol):
    """An opened source. Iterating raises FeedError or av.FFmpegError where it cannot be read on."""

    @property
    def finite(self) -> bool:
        """Whether it is a recording, whose end is no failure and which is paced when it stands for a camera."""
        ...

    @property
    def period(self) -> float:
        """Seconds from a frame to the next, as far as that is known before reading."""
        ...

    @property
    def corrupt(self) -> int:
        """Frames left out so far."""
        ...

    def __iter__(self) -> Iterator[Picture]: ...

    def close(self) -> None: ...


class FolderReader:
    """Images, in the order given, at ``fps`` a second."""

    finite = True

    def __init__(self, paths: Sequence[Path], fps: float) -> None:
        self._paths = paths
        self.period = 1 / fps
        self.corrupt = 0

    def __iter__(self) -> Iterator[Picture]:
        for position, path in enumerate(self._paths):
            image = cv2.imread(str(path), cv2.IMREAD_COLOR)
            if image is None:
                self.corrupt += 1
                continue
            pixels = np.asarray(image, np.uint8)
            yield position * self.period, lambda pixels=pixels: pixels  # type: ignore[misc]

    def close(self) -> None:
        pass


class VideoReader:
    """The first video stream of a container, which it closes."""

    def __init__(self, container: Any, *, finite: bool) -> None:
        self._container = container
        self.finite = finite
        streams = container.streams.video
        self.period = 1 / float((streams and (streams[0].average_rate or streams[0].guessed_rate)) or 25)
        self.corrupt = 0

    def __iter__(self) -> Iterator[Picture]:
        if not self._container.streams.video:
            raise FeedError("there is no video stream in it")
        stream = self._container.streams.video[0]
        first = end = None
        for frame in self._decode(stream):
            stamp = frame.time
            if stamp is None:
                # Some cameras do not stamp; for a recording the position in it is the better guess.
                stamp = (end or 0.0) if self.finite else time.monotonic()
            first = stamp if first is None else first
            end = stamp + (float(frame.duration * frame.time_base) if frame.duration else self.period)
            yield stamp, lambda frame=frame: _pixels(frame)  # type: ignore[misc]
        promised = _promised_seconds(self._container, stream) if self.finite else None
        read = 0.0 if first is None or end is None else end - first
        if promised is not None and read < promised - max(0.5, 2 * self.period):
            raise FeedError(f"ends after {read:.1f} s of {promised:.1f} s; the file is truncated or damaged")

    def _decode(self, stream: Any) -> Iterator[Any]:
        run = 0
        for packet in self._container.demux(stream):
            try:
                frames = packet.decode()
            except av.FFmpegError as error:
                frames = []
                run, self.corrupt = run + 1, self.corrupt + 1
                if run >= _MAX_CORRUPT_RUN:
                    raise FeedError(f"{run} corrupt frames in a row: {reason_of(error)}") from error
            for frame in frames:
                if frame.is_corrupt:
                    self.corrupt += 1
                    continue
                run = 0
                yield frame

    def close(self) -> None:
        self._container.close()


def reason_of(error: Exception) -> str:
    """An error in words, without the address that FFmpeg adds to it: a camera's may hold a password."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _pixels(frame: Any) -> Image:
    image: Image = frame.to_ndarray(format="bgr24")
    # Phones and ceiling cameras store the picture as the sensor sees it and say how to turn it.
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(image, turns)) if turns else image


def _promised_seconds(container: Any, stream: Any) -> float | None:
    """How long the headers say that the video is, or None where they do not say."""
    total = container.duration / av.time_base if container.duration else None
    own = float(stream.duration * stream.time_base) if stream.duration else None
    if "mp4" in container.format.name:
        # An edit list shows less than the track holds, and the sound may be longer than the pictures.
        known = [seconds for seconds in (total, own) if seconds is not None]
        return min(known) if known else None
    if stream.frames and stream.average_rate:
        # AVI: the durations were corrected to what the file still holds, the count was not.
        return float(stream.frames / stream.average_rate)
    return total if len(container.streams) == 1 else None
