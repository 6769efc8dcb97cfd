"""Feeds: cameras, streams, files and folders as threads that hold frames ready for the queries.

``source`` says what may be read, ``reader`` reads it, ``timing`` decides when, ``feed`` is the thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..manifest import FeedSpec
from .feed import Feed
from .frame import Frame, Image
from .reader import Picture, Reader
from .source import Opener, Source, is_local_file, package_file, resolve
from .timing import Backoff

__all__ = [
    "Backoff",
    "Feed",
    "Frame",
    "Image",
    "Opener",
    "Picture",
    "Reader",
    "Source",
    "is_local_file",
    "open_feeds",
    "package_file",
    "resolve",
]


def open_feeds(specs: Mapping[str, FeedSpec], base: Path | None = None) -> dict[str, Feed]:
    """Feeds by name, not started yet.

    Args:
        specs: feeds of a manifest.
        base: folder that relative paths start from; the working directory when left out.

    Raises:
        FeedError: a source that does not exist or is not of an allowed kind.
    """
    return {
        name: Feed(name, resolve(name, spec.source, fps=spec.fps, base=base), fps=spec.fps, loop=spec.loop)
        for name, spec in specs.items()
    }
