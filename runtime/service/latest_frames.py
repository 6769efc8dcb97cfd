"""Newest annotated frame of each feed, for the live page."""

from __future__ import annotations

from collections.abc import Mapping
from threading import Condition

import cv2

from ...frames.frame import Frame, Image
from ..decode.results import Result
from ..sinks.draw import Palette, annotate
from ..sinks.sink import Sink

__all__ = ["LatestFrames"]

_QUALITY = 80
"""JPEG quality of the live page's pictures, from 0 to 100."""
_MOST_WIDTH = 960
"""Maximum width in pixels of the live page's pictures; wider frames are made smaller."""


class LatestFrames(Sink):
    """Sink that keeps the newest frame of each feed with its results, and draws a picture of it only on request.

    Args:
        queries: query name -> name of its feed; the order of queries decides their colours.
    """

    queued = False

    def __init__(self, queries: Mapping[str, str]) -> None:
        self._queries = queries
        self._colors = Palette(queries)
        self._frames: dict[str, tuple[Frame, Mapping[str, Result]]] = {}
        self._drawn: dict[str, tuple[int, bytes]] = {}
        self._news = Condition()
        self.closed = False
        """Whether the run has ended, so that no frame will come."""

    def on_frame(self, frame: Frame, results: Mapping[str, Result]) -> None:
        with self._news:
            self._frames[frame.feed] = frame, dict(results)
            feeds = {feed for _, feed in self._queries.items()}
            for gone in self._frames.keys() - feeds:
                # A reload has removed the feed. Its frame may take many megabytes.
                del self._frames[gone]
                self._drawn.pop(gone, None)
            self._news.notify_all()

    def close(self) -> None:
        with self._news:
            self.closed = True
            self._news.notify_all()

    def has(self, feed: str) -> bool:
        """Return whether a query of the run has this feed, so that frames may come."""
        return any(feed == each for _, each in self._queries.items())

    def picture(self, feed: str, after: int = -1, timeout: float = 0.0) -> tuple[int, bytes] | None:
        """Return the newest picture of a feed as its frame number and a JPEG file.

        Args:
            feed: name of the feed.
            after: number of the frame that the caller has already; the call waits for another one.
            timeout: maximum seconds to wait.

        Returns:
            None if there is no other frame in time, or the run has ended.
        """
        with self._news:
            self._news.wait_for(lambda: self.closed or self._number(feed) not in (None, after), timeout)
            if self.closed or self._number(feed) in (None, after):
                return None
            frame, results = self._frames[feed]
            drawn = self._drawn.get(feed)
        # Drawing takes milliseconds: the runner, which waits for the lock, must not wait for it.
        if drawn is None or drawn[0] != frame.index:
            drawn = self._drawn[feed] = frame.index, self._draw(frame, results)
        return drawn

    def _number(self, feed: str) -> int | None:
        found = self._frames.get(feed)
        return None if found is None else found[0].index

    def _draw(self, frame: Frame, results: Mapping[str, Result]) -> bytes:
        mine = {query: results.get(query) for query, feed in self._queries.items() if feed == frame.feed}
        picture: Image = annotate(frame.image, mine, self._colors, frame.time)
        height, width = picture.shape[:2]
        if width > _MOST_WIDTH:
            size = (_MOST_WIDTH, max(1, round(height * _MOST_WIDTH / width)))
            picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA).astype(picture.dtype, copy=False)
        _, encoded = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
        return encoded.tobytes()
