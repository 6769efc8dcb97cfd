"""Readers: yield the pictures of an opened source in order. Corrupt frames are counted and left out."""

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
"""File name suffixes, in lower case, of the files that are read from a folder of images."""

Picture = tuple[float, Callable[[], Image]]
"""Time stamp of a picture in seconds, as its source states it, and a function that returns the picture's pixels.

The function is not called for frames that are left out, which saves their conversion.
"""

_MAX_CORRUPT_RUN = 300
"""Number of consecutive packets that cannot be decoded, after which a stream counts as broken: about ten seconds.

A camera that is opened in the middle of a group of pictures gives errors until the next key frame, which may be some
seconds away.
"""


class Reader(Protocol):
    """Opened source of pictures. Iterating raises FeedError or av.FFmpegError if the source cannot be read further."""

    @property
    def finite(self) -> bool:
        """Whether the source is a recording. Its end is no failure, and a live run plays it in real time."""
        ...

    @property
    def period(self) -> float:
        """Expected seconds from one frame to the next, known before the first frame is read."""
        ...

    @property
    def corrupt(self) -> int:
        """Number of corrupt frames that were left out so far."""
        ...

    def __iter__(self) -> Iterator[Picture]:
        """Yield the pictures of the source in order."""
        ...

    def close(self) -> None:
        """Release the source."""
        ...


class FolderReader:
    """Reader of image files, which yields them in the given order at ``fps`` images per second of media time."""

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
    """Reader of the first video stream of a container. Closing the reader closes the container."""

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
                # Some cameras give no time stamps. In a recording, the end of the last frame is the better guess.
                stamp = (end or 0.0) if self.finite else time.monotonic()
            first = stamp if first is None else first
            end = stamp + (float(frame.duration * frame.time_base) if frame.duration else self.period)
            yield stamp, lambda frame=frame: _pixels(frame)  # type: ignore[misc]
        promised = _promised_seconds(self._container, stream) if self.finite else None
        read = 0.0 if first is None or end is None else end - first
        if promised is not None and read < promised - max(0.5, 2 * self.period):
            raise FeedError(f"ends after {read:.1f} s of {promised:.1f} s; the file is truncated or damaged")

    def _decode(self, stream: Any) -> Iterator[Any]:
        """Yield decoded frames and count corrupt ones. Raise FeedError after too many corrupt packets in a row."""
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
    """Return the message of an error without the URL that FFmpeg adds: the URL of a camera may hold a password."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _pixels(frame: Any) -> Image:
    """Return the pixels of a decoded frame in BGR, rotated as the video's metadata says."""
    image: Image = frame.to_ndarray(format="bgr24")
    # Phones and ceiling cameras store pictures as the sensor sees them, with a rotation to show them by.
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(image, turns)) if turns else image


def _promised_seconds(container: Any, stream: Any) -> float | None:
    """Return the seconds of video that a container's headers promise; None if the headers do not say."""
    total = container.duration / av.time_base if container.duration else None
    own = float(stream.duration * stream.time_base) if stream.duration else None
    if "mp4" in container.format.name:
        # The shorter one: an edit list shows less than the track holds, and sound may be longer than pictures.
        known = [seconds for seconds in (total, own) if seconds is not None]
        return min(known) if known else None
    if stream.frames and stream.average_rate:
        # For a truncated AVI the durations say what the file still holds, but the count of frames what it should.
        return float(stream.frames / stream.average_rate)
    return total if len(container.streams) == 1 else None
