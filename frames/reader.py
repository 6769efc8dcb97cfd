"""Interface of readers, which yield the pictures of an opened source in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from ..errors import FeedError
from .frame import Image

__all__ = ["IMAGE_SUFFIXES", "Picture", "Reader", "SilentError", "reason_of"]

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
"""File name suffixes, in lower case, of the files that are read from a folder of images."""

Picture = tuple[float, Callable[[], Image]]
"""Time stamp of a picture in seconds, as its source states it, and a function that returns the picture's pixels.

The function is not called for frames that are left out, which saves their conversion.
"""


class SilentError(FeedError):
    """Error about a camera or stream that gave no answer or no picture for as long as its timeout."""


class Reader(Protocol):
    """Opened source of pictures. Iterating raises FeedError or av.FFmpegError if the source cannot be read further."""

    @property
    def finite(self) -> bool:
        """Whether a source is a recording. Its end is no failure, and a live run plays it in real time."""
        ...

    @property
    def period(self) -> float:
        """Expected seconds from one frame of a source to the next, known before the first frame is read."""
        ...

    @property
    def clocked(self) -> bool:
        """Whether a source's time stamps are times of arrival on the monotonic clock, because the source has none of
        its own."""
        ...

    @property
    def again_s(self) -> float | None:
        """Seconds after which to open a source again, if each opening gives only one picture; None for all other
        sources."""
        ...

    @property
    def corrupt(self) -> int:
        """Number of pictures of a source that were left out so far because they are damaged."""
        ...

    @property
    def withheld(self) -> int:
        """Number of good pictures of a source that were left out so far because a key frame was missing."""
        ...

    @property
    def behind(self) -> int:
        """Number of pictures of a source that were left out so far because the reader was behind the camera."""
        ...

    @property
    def captured(self) -> float | None:
        """Time at which the camera sent a source's newest picture, in seconds of the monotonic clock; None if this is
        not known."""
        ...

    def __iter__(self) -> Iterator[Picture]:
        """Yield the pictures of an opened source in order."""
        ...

    def close(self) -> None:
        """Release an opened source of pictures."""
        ...


def reason_of(error: BaseException) -> str:
    """Return the message of an error as one line, without the URL that FFmpeg adds: it may hold a password."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())
