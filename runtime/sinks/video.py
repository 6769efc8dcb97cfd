"""The sink that writes annotated videos, one for each feed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from queue import Queue
from threading import Thread

from ...errors import GemelError, InputError, first_line
from ...frames.frame import Frame
from ..decode.results import Result
from .draw import annotate, palette
from .encoder import Encoder
from .sink import Sink

__all__ = ["VideoSink"]

_Item = tuple[Frame, dict[str, Result]]


class VideoSink(Sink):
    """Videos ``DIR/<feed>.mp4`` of all frames that a query processed, with the newest results of the feed's queries.

    The sink draws and encodes on its own thread. If that falls behind by ``depth`` frames, the run waits, so that no
    frame is left out.

    Args:
        directory: folder of the videos; created if it does not exist.
        queries: feed of each query; the order of queries decides their colours.
        depth: frames that may wait to be drawn.

    Raises:
        InputError: the directory cannot be created.
    """

    def __init__(self, directory: Path, queries: Mapping[str, str], *, depth: int = 8) -> None:
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{directory}: cannot make the folder for videos: {error.strerror}") from error
        self._directory = directory
        self._queries = dict(queries)
        self._colors = palette(tuple(queries))
        self._encoders: dict[str, Encoder] = {}
        self._failure: GemelError | None = None
        self._queue: Queue[_Item | None] = Queue(maxsize=depth)
        self._thread = Thread(target=self._run, name="video-sink", daemon=True)
        self._thread.start()

    def path(self, feed: str) -> Path:
        """Return the video file of a feed."""
        # A manifest may come from anywhere: the names in it must not lead out of the directory.
        return self._directory / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', feed).lstrip('.') or '_'}.mp4"

    def on_frame(self, frame: Frame, results: Mapping[str, Result]) -> None:
        if self._failure is not None:
            raise self._failure
        self._queue.put((frame, dict(results)))

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        # After a failure the queue is emptied all the same: otherwise the run would wait for room without end.
        while (item := self._queue.get()) is not None:
            if self._failure is None:
                self._guard(item[0].feed, lambda item=item: self._write(*item))  # type: ignore[misc]
        for feed, encoder in self._encoders.items():
            self._guard(feed, encoder.close)

    def _write(self, frame: Frame, results: Mapping[str, Result]) -> None:
        if frame.feed not in self._encoders:
            self._encoders[frame.feed] = Encoder(self.path(frame.feed), frame.image)
        mine = {query: results.get(query) for query, feed in self._queries.items() if feed == frame.feed}
        self._encoders[frame.feed].write(annotate(frame.image, mine, self._colors, frame.time), frame.time)

    def _guard(self, feed: str, action: Callable[[], None]) -> None:
        """Do an action, and keep the first failure for the thread that runs models to raise."""
        try:
            action()
        except Exception as error:
            # Any exception, because this thread must go on to empty the queue.
            failure = GemelError(f"{self.path(feed)}: cannot write the video: {first_line(error)}")
            failure.__cause__ = error
            self._failure = self._failure or failure
