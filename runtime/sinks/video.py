"""Writer of annotated videos, one for each feed, in files of limited length."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...bundles.output_specs import VideoSpec
from ...frames.frame import Frame
from ..decode.results import Result
from .draw import Palette, annotate
from .encoder import Encoder
from .events import SinkEvent, wall_time
from .stamped_folder import StampedFolder
from .writer import Writer

__all__ = ["VideoWriter"]


@dataclass
class _Part:
    """File of a feed's video that is being written."""

    encoder: Encoder
    lock: int
    """File descriptor that holds the lock of the video file."""
    start: float
    """Media time in seconds of the first frame in the video file."""
    last: float
    """Media time in seconds of the newest frame in the video file."""


class VideoWriter(Writer):
    """Writer of the files ``<feed>.mp4``: frames that a query processed, with the newest results of the feed.

    After ``segment`` seconds of video, a file is renamed to ``<feed>-<time of its end>.mp4`` and a new one begins. The
    same happens after a failure, and to a file of an earlier run.

    Args:
        spec: folder, length of a file, and limit of the folder.
        queries: feed of each query; the order of queries decides their colours.
    """

    kinds = frozenset({"frame"})
    pixels = True
    polite = True
    depth = 32
    most_bytes = 256 << 20

    def __init__(self, spec: VideoSpec, queries: Mapping[str, str]) -> None:
        self._spec, self._queries = spec, queries
        self._colors = Palette(queries)
        self._folder = StampedFolder(Path(spec.folder), ".mp4", spec.keep)
        self._parts: dict[str, _Part] = {}

    def write(self, batch: deque[SinkEvent]) -> None:
        event = batch[0]
        try:
            self._write(event.frame, event.results)
        except BaseException:
            # What was written so far can be played; the next try begins a new file.
            self._abandon(event.frame.feed)
            raise
        batch.popleft()

    def close(self) -> None:
        for feed in list(self._parts):
            self._finish(feed)

    def _write(self, frame: Frame, results: Mapping[str, Result]) -> None:
        part = self._parts.get(frame.feed)
        if part is not None and not part.last <= frame.time < part.start + self._spec.segment:
            self._finish(frame.feed)
            part = None
        if part is None:
            part = self._parts[frame.feed] = self._begin(frame)
        mine = {query: results.get(query) for query, feed in self._queries.items() if feed == frame.feed}
        drawn = annotate(frame.image, mine, self._colors, frame.time, wall_time(frame))
        part.encoder.write(drawn, frame.time - part.start)
        part.last = frame.time

    def _begin(self, frame: Frame) -> _Part:
        """Begin a new file of a feed's video."""
        path, lock = self._folder.begin(frame.feed)
        self._folder.prune()
        try:
            return _Part(Encoder(path, frame.image), lock, frame.time, frame.time)
        except BaseException:
            os.close(lock)
            raise

    def _finish(self, feed: str) -> None:
        """Finish the file of a feed's video."""
        part = self._parts.pop(feed)
        try:
            part.encoder.close()
        finally:
            os.close(part.lock)

    def _abandon(self, feed: str) -> None:
        """Close the file of a feed's video after a failure. The feed's next frame renames it and begins a new file."""
        if feed in self._parts:
            with contextlib.suppress(Exception):
                self._finish(feed)
