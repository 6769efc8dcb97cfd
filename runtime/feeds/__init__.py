"""Feeds: cameras, streams, files and folders as threads that hold frames ready for the queries.

``source`` says what may be read, ``reader`` reads it, ``timing`` decides when, ``feed`` is the thread.
"""

from __future__ import annotations

from ...frames.frame import Frame, Image
from ...frames.reader import Picture, Reader
from ...frames.source import Opener, Source, is_local_file, package_file, resolve
from .feed import Feed
from .pacing import Backoff

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
    "package_file",
    "resolve",
]
