"""Sources of frames: check the text by which a workload names a source, and open the source."""

from __future__ import annotations

import re
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import av

from ..environment import expand
from ..errors import FeedError, InputError
from .reader import IMAGE_SUFFIXES, FolderReader, Reader, VideoReader, reason_of
from .reference import package_file

__all__ = ["FrameSource", "Source", "resolve"]

_ALLOWED = (
    "a video file, a folder of images, rtsp://…, rtsps://…, http://…, https://…, a V4L device such as /dev/video0, "
    "or package:NAME/path/file.mp4"
)
_SCHEMES = ("rtsp", "rtsps", "http", "https")
_FOLDER_FPS = 10.0
"""Images per second at which a folder of images is read, if its feed states no rate."""
_TIMEOUT_S = 5.0
"""Seconds after which opening or reading a stream or device fails."""


class FrameSource(Protocol):
    """Source of frames that can be opened any number of times."""

    @property
    def live(self) -> bool:
        """Whether the source is a camera or stream, which is opened again after an end or a failure."""
        ...

    def open(self) -> Reader:
        """Open the source, and return a reader of its frames.

        Raises:
            FeedError: the source cannot be opened at the moment.
        """
        ...


@dataclass(frozen=True, slots=True)
class Source:
    """File, folder, stream or device that a workload names as the source of a feed."""

    feed: str
    """Name of the feed, which error messages state."""
    kind: Literal["file", "folder", "stream", "device"]
    location: str
    """Absolute path or URL of the source."""
    folder_fps: float = _FOLDER_FPS
    """Images per second at which a folder is read. Other kinds of source have a rate of their own."""

    @property
    def live(self) -> bool:
        """Whether the source is a camera or stream, which is opened again after an end or a failure."""
        return self.kind in ("stream", "device")

    def __str__(self) -> str:
        # URLs of cameras may hold passwords, and messages end up in logs.
        return re.sub(r"(?<=://)[^/@]*@", "***@", self.location)

    def open(self) -> Reader:
        """Open the source (a file, folder, stream or device), and return a reader of its frames.

        Raises:
            FeedError: the source cannot be opened at the moment.
        """
        if self.kind == "folder":
            return FolderReader(_images(Path(self.location)), self.folder_fps)
        form, options = None, {}
        if self.kind == "device":
            form = "v4l2"
        elif self.kind == "stream":
            microseconds = str(int(_TIMEOUT_S * 1e6))
            # TCP, because UDP, the default of RTSP, loses packets, and then pictures are smeared for minutes.
            rtsp = self.location.startswith("rtsp")
            options = {"rtsp_transport": "tcp", "timeout": microseconds} if rtsp else {"rw_timeout": microseconds}
        timeout = (_TIMEOUT_S, _TIMEOUT_S) if self.live else None
        try:
            container = av.open(self.location, "r", format=form, options=options, timeout=timeout)
        except (av.FFmpegError, OSError, ValueError) as error:
            raise FeedError(f"cannot open {self}: {reason_of(error)}") from error
        return VideoReader(container, finite=not self.live or container.duration is not None)

    def probe(self) -> None:
        """Open the source, read one frame, and close it again.

        Raises:
            FeedError: there is no readable frame; the message names the feed and the source.
        """
        try:
            with closing(self.open()) as reader:
                for _, load in reader:
                    load()
                    return
        except (FeedError, av.FFmpegError) as error:
            raise FeedError(f"feed {self.feed!r}: {reason_of(error)}") from error
        raise FeedError(f"feed {self.feed!r}: there is no readable frame in {self}")


def resolve(feed: str, source: str, *, fps: float | None = None, base: Path | None = None) -> Source:
    """Return the source that a text names, after all checks that are possible without opening the source.

    Args:
        feed: name of the feed, which error messages state.
        source: a path, URL, device or ``package:`` reference; ``${VAR}`` is taken from the environment.
        fps: frames per second of the feed, at which a folder of images is read (10 when left out).
        base: folder that a relative path starts from; the working directory when left out.

    Raises:
        FeedError: the source does not exist, or is of a kind that is not allowed.
    """
    where = f"feed {feed!r}: source {source!r}"
    try:
        source = expand(source)
    except KeyError as error:
        raise FeedError(f"{where}: environment variable {error.args[0]} is not set") from error
    if not source or "\0" in source:
        raise FeedError(f"{where} is not a source; allowed: {_ALLOWED}")
    scheme, separator, _ = source.partition("://")
    if separator:
        if scheme.lower() not in _SCHEMES:
            raise FeedError(f"feed {feed!r}: source of scheme {scheme!r} is not supported; allowed: {_ALLOWED}")
        return Source(feed, "stream", source)
    if source.startswith("package:"):
        try:
            return Source(feed, "file", str(package_file(source)))
        except InputError as error:
            raise FeedError(f"feed {feed!r}: source {error}") from error
    path = ((base or Path()) / Path(source).expanduser()).absolute()
    if path.is_char_device():
        return Source(feed, "device", str(path))
    if path.is_dir():
        if not _images(path):
            raise FeedError(f"{where} is a folder without images; looked for {', '.join(sorted(IMAGE_SUFFIXES))}")
        return Source(feed, "folder", str(path), fps or _FOLDER_FPS)
    if path.is_file():
        return Source(feed, "file", str(path))
    raise FeedError(f"{where} does not exist; allowed: {_ALLOWED}")


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
