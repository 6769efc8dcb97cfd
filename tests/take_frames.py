"""Taking frames from feeds: all of them, or until enough has happened."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Condition
from typing import Any

from gemel.frames.frame import Frame
from gemel.frames.settings import ReadSettings
from gemel.frames.source import resolve
from gemel.runtime.feeds import Backoff, Feed
from gemel.runtime.loop.summary import FeedStats

__all__ = ["LONG_S", "drain", "fails", "take_until", "watch"]

LONG_S = 30.0
"""Seconds after which a test gives up waiting for a feed."""


def drain(feed: Feed, *, live: bool = False, limit: int | None = None) -> list[Frame]:
    """Start a feed, and take all its frames."""
    wake = Condition()
    feed.start(wake, live=live, limit=limit)
    frames = []
    with wake:
        while not feed.finished:
            frame = feed.take()
            if frame is not None:
                frames.append(frame)
            else:
                assert wake.wait(LONG_S)
    feed.join(LONG_S)
    return frames


def take_until(feed: Feed, enough: Callable[[list[Frame]], bool]) -> list[Frame]:
    """Start a feed, take frames until ``enough`` returns true, stop the feed, and take a frame that is left."""
    frames: list[Frame] = []
    wake, end = Condition(), time.monotonic() + LONG_S
    feed.start(wake, live=True)
    while not enough(frames):
        assert time.monotonic() < end, (FeedStats.of(feed), [frame.time for frame in frames])
        with wake:
            wake.wait(0.01)
        frame = feed.take()
        if frame is not None:
            frames.append(frame)
    feed.stop()
    feed.join(LONG_S)
    if (frame := feed.take()) is not None:
        frames.append(frame)
    stats = FeedStats.of(feed)
    assert stats.captured == stats.delivered + stats.corrupt + stats.withheld + stats.behind
    return frames


def watch(url: str, enough: Callable[[Feed, list[Frame]], bool], **settings: Any) -> tuple[Feed, list[Frame]]:
    """Read a camera until ``enough`` returns true, and return its feed, which is stopped, and the frames."""
    feed = Feed("gate", resolve("gate", url, settings=ReadSettings(**settings)), backoff=Backoff(0.01, 0.04))
    return feed, take_until(feed, lambda frames: enough(feed, frames))


def fails(feed: Feed, frames: list[Frame]) -> bool:
    """Return whether the source of a feed has been opened again twice; to be given to :func:`watch`."""
    return feed.counts.restarts >= 2
