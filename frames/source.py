"""What may be a feed: from the text in a workload to something that can be opened."""

from __future__ import annotations

import re
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Literal, Protocol

import av

from ..environment import expand
from ..errors import FeedError, InputError
from .reader import IMAGE_SUFFIXES, FolderReader, Reader, VideoReader, reason_of

__all__ = ["Opener", "Source", "is_local_file", "package_file", "resolve"]

_ALLOWED = (
    "a video file, a folder of images, rtsp://…, rtsps://…, http://…, https://…, a V4L device such as /dev/video0, "
    "or package:NAME/path/file.mp4"
)
_SCHEMES = ("rtsp", "rtsps", "http", "https")
_FOLDER_FPS = 10.0
_TIMEOUT_S = 5.0


class Opener(Protocol):
    """A source that can be opened again and again."""

    @property
    def live(self) -> bool:
        """Whether it is a camera or stream, which is opened again after a failure."""
        ...

    def open(self) -> Reader:
        """Start reading.

        Raises:
            FeedError: it cannot be opened now.
        """
        ...


@dataclass(frozen=True, slots=True)
class Source:
    feed: str
    kind: Literal["file", "folder", "stream", "device"]
    location: str
    """An absolute path or a URL."""
    folder_fps: float = _FOLDER_FPS
    """Images a second of a folder, which has no rate of its own."""

    @property
    def live(self) -> bool:
        return self.kind in ("stream", "device")

    def __str__(self) -> str:
        # Camera URLs carry passwords, and messages end up in logs.
        return re.sub(r"(?<=://)[^/@]*@", "***@", self.location)

    def open(self) -> Reader:
        if self.kind == "folder":
            return FolderReader(_images(Path(self.location)), self.folder_fps)
        form, options = None, {}
        if self.kind == "device":
            form = "v4l2"
        elif self.kind == "stream":
            microseconds = str(int(_TIMEOUT_S * 1e6))
            # UDP, the default of RTSP, loses packets, and what follows is minutes of smeared pictures.
            rtsp = self.location.startswith("rtsp")
            options = {"rtsp_transport": "tcp", "timeout": microseconds} if rtsp else {"rw_timeout": microseconds}
        timeout = (_TIMEOUT_S, _TIMEOUT_S) if self.live else None
        try:
            container = av.open(self.location, "r", format=form, options=options, timeout=timeout)
        except (av.FFmpegError, OSError, ValueError) as error:
            raise FeedError(f"cannot open {self}: {reason_of(error)}") from error
        return VideoReader(container, finite=not self.live or container.duration is not None)

    def probe(self) -> None:
        """Open, read one frame and close.

        Raises:
            FeedError: there is no readable frame; the message names feed and source.
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
    """The source of a feed, checked as far as possible without opening it.

    Args:
        feed: the feed's name, for messages.
        source: a path, URL, device or ``package:`` reference; ``${VAR}`` is taken from the environment.
        fps: the feed's rate, which is also the rate of a folder of images (10 when left out).
        base: folder that a relative path starts from; the working directory when left out.

    Raises:
        FeedError: it does not exist, or is of a kind that is not allowed.
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


def is_local_file(source: str) -> bool:
    """Whether a source is the path of a file or folder, which may be relative: no URL, package file or device."""
    return "://" not in source and not source.startswith(("package:", "/dev/"))


def package_file(reference: str) -> Path:
    """The file inside an installed package that ``package:NAME/path`` names; the package is not imported.

    Raises:
        InputError: no such package or file, or a path that leaves the package.
    """
    name, _, inside = reference.removeprefix("package:").partition("/")
    parts = PurePosixPath(inside).parts
    # Only the text is judged, not links: installers may link files of a package from a cache outside of it.
    if not name.isidentifier() or not parts or ".." in parts or parts[0] == "/" or "\\" in inside or "\0" in inside:
        raise InputError(f"{reference!r}: expected package:NAME/path/file, with a path that stays inside the package")
    try:
        spec = find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.submodule_search_locations is None:
        raise InputError(f"{reference!r}: package {name!r} is not installed")
    for root in spec.submodule_search_locations:
        path = Path(root, *parts)
        if path.is_file():
            return path
    raise InputError(f"{reference!r}: package {name!r} has no file {inside!r}")


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
