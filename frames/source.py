"""Sources of frames: check the text by which a workload names a source, and open the source."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol

from ..environment import VariableError, expand
from ..errors import FeedError, InputError
from .address import shown_address
from .folder import FolderReader, list_images
from .open_video import open_video
from .reader import IMAGE_SUFFIXES, Reader, reason_of
from .reference import package_file
from .settings import ReadSettings
from .video import VideoReader

__all__ = ["FrameSource", "Source", "resolve"]

_ALLOWED = (
    "a video file, a folder of images, rtsp://…, rtsps://…, http://…, https://…, a V4L device such as /dev/video0, "
    "or package:NAME/path/file.mp4"
)
_SCHEMES = ("rtsp", "rtsps", "http", "https")
_FOLDER_FPS = 10.0
"""Images per second at which a folder of images is read, if its feed states no rate."""


class FrameSource(Protocol):
    """Source of frames (camera, stream, recording or folder) that can be opened any number of times."""

    @property
    def live(self) -> bool:
        """Whether the source is a camera or stream, which is opened again after an end or a failure."""
        ...

    def open(self, patience: float = 1.0) -> Reader:
        """Open a source of frames, and return a reader of its frames.

        Args:
            patience: factor by which to wait longer than usual for a camera's pictures.

        Raises:
            FeedError: the source cannot be opened at the moment.
        """
        ...


@dataclass(frozen=True, slots=True)
class Source:
    """File, folder, stream or device that a workload names as the source of a feed."""

    feed: str
    """Name of the feed that a source of frames belongs to, which error messages state."""
    kind: Literal["file", "folder", "stream", "device"]
    location: str
    """Absolute path or URL of the file, folder, stream or device that frames are read from."""
    fps: float | None = None
    """Frames per second of the feed, at which a folder of images is read and a camera's snapshots are fetched."""
    settings: ReadSettings = field(default_factory=ReadSettings)

    @property
    def live(self) -> bool:
        """Whether the source is a camera or stream, which is opened again after an end or a failure."""
        return self.kind in ("stream", "device")

    def __str__(self) -> str:
        # Addresses of cameras may hold passwords, and messages end up in logs.
        return shown_address(self.location)

    def open(self, patience: float = 1.0) -> Reader:
        """Open the source (a file, folder, stream or device), and return a reader of its frames.

        Args:
            patience: factor by which to wait longer than the settings say for a camera's pictures.

        Raises:
            FeedError: the source cannot be opened at the moment.
        """
        if self.kind == "folder":
            try:
                paths = list_images(Path(self.location))
            except OSError as error:
                raise FeedError(f"cannot open {self}: {error.strerror or error}") from error
            return FolderReader(paths, self.fps or _FOLDER_FPS)
        settings = replace(self.settings, timeout_s=self.settings.timeout_s * patience)
        container = open_video(self.location, self.kind, settings)
        finite = not self.live or container.duration is not None
        try:
            return VideoReader(container, settings, live=self.live, finite=finite, fps=self.fps, feed=self.feed)
        except FeedError as error:
            container.close()
            raise FeedError(f"cannot open {self}: {error}") from error

    def probe(self) -> None:
        """Open a source of frames, read one frame, and close the source again.

        Raises:
            FeedError: there is no readable frame; the message names the feed and the source.
        """
        try:
            with closing(self.open()) as reader:
                for _, load in reader:
                    load()
                    return
        except Exception as error:
            # Any exception, also one of an image library: a source whose first picture cannot be read is of no use.
            raise FeedError(f"feed {self.feed!r}: {reason_of(error)}") from error
        raise FeedError(f"feed {self.feed!r}: there is no readable frame in {self}")


def resolve(
    feed: str,
    source: str,
    *,
    fps: float | None = None,
    base: Path | None = None,
    settings: ReadSettings | None = None,
    variables: Collection[str] | None = None,
) -> Source:
    """Return the source that a text names, after all checks that are possible without opening the source.

    A device below ``/dev`` need not exist: it may be plugged in later.

    Args:
        feed: name of the feed, which error messages state.
        source: a path, URL, device or ``package:`` reference; ``${VAR}`` is taken from the environment.
        fps: frames per second of the feed, at which a folder of images is read (10 when left out).
        base: folder that a relative path starts from; the working directory when left out.
        settings: how to read the source.
        variables: names that ``${VAR}`` may stand for, besides those that begin with ``GEMEL_``; any name when left
            out, for a text that comes from the user and not from a bundle.

    Raises:
        FeedError: the source does not exist, is of a kind that is not allowed, or names a variable that is not set or
            not allowed.
    """
    where = f"feed {feed!r}: source {shown_address(source)!r}"
    try:
        source = expand(source, variables)
    except VariableError as error:
        raise FeedError(f"{where}: {error}") from error
    where = f"feed {feed!r}: source {shown_address(source)!r}"
    if not source or "\0" in source:
        raise FeedError(f"{where} is not a source; allowed: {_ALLOWED}")
    settings = settings or ReadSettings()
    scheme, separator, _ = source.partition("://")
    if separator:
        if scheme.lower() not in _SCHEMES:
            raise FeedError(f"{where} is of a scheme that is not supported; allowed: {_ALLOWED}")
        return Source(feed, "stream", source, fps, settings)
    if source.startswith("package:"):
        try:
            return Source(feed, "file", str(package_file(source)), fps, settings)
        except InputError as error:
            raise FeedError(f"feed {feed!r}: source {error}") from error
    path = ((base or Path()) / Path(source).expanduser()).absolute()
    if path.is_char_device() or (path.parts[:2] == ("/", "dev") and not path.exists()):
        return Source(feed, "device", str(path), fps, settings)
    if path.is_dir():
        if not list_images(path):
            raise FeedError(f"{where} is a folder without images; looked for {', '.join(sorted(IMAGE_SUFFIXES))}")
        return Source(feed, "folder", str(path), fps, settings)
    if path.is_file():
        return Source(feed, "file", str(path), fps, settings)
    raise FeedError(f"{where} does not exist; allowed: {_ALLOWED}")
