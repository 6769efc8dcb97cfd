"""Frames of a query's feed, on which a bundle is compared with its source; seeded noise where there are none."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass

import av
import numpy as np

from ...errors import FeedError
from ...frames.frame import Image
from ...frames.source import Source, resolve
from ...workload.document.schema import Workload

__all__ = ["FeedFrames", "read_feed_frames"]

_MOST_READ = 240
"""Frames at the beginning of a recording among which frames are chosen."""
_NOISE_SIZE = (480, 640)
"""Height and width of a frame of noise."""


@dataclass(frozen=True)
class FeedFrames:
    """Pictures to compare on."""

    images: tuple[Image, ...]
    """Frames, BGR; at least one."""
    words: str
    """Origin of the frames, for people."""
    is_noise: bool = False
    """Whether the frames are noise, so that answers on them mean nothing."""


def read_feed_frames(workload: Workload, feed: str, count: int) -> FeedFrames:
    """Read frames at equal steps from the beginning of a feed's recording, or return one frame of noise.

    Args:
        workload: workload with the feed.
        feed: name of the feed.
        count: most frames to return.
    """
    text = workload.feeds[feed].source
    try:
        # The address of a camera may hold a password, so it is neither resolved nor part of a message.
        if "://" in text or "${" in text:
            raise FeedError(f"feed {feed} is a camera")
        source = resolve(feed, text, base=workload.root)
        if source.live:
            raise FeedError(f"feed {feed} is a camera")
        images = _read(source, count)
        if not images:
            raise FeedError(f"feed {feed} has no frame")
    except (FeedError, av.FFmpegError) as error:
        pixels = np.random.default_rng(0).integers(0, 256, (*_NOISE_SIZE, 3), np.uint8)
        return FeedFrames((pixels,), f"on noise, because {error}", is_noise=True)
    return FeedFrames(images, f"on {len(images)} frames of feed {feed}")


def _read(source: Source, count: int) -> tuple[Image, ...]:
    """Return frames at equal steps among the first of a recording; it is read twice, to keep few of them in memory."""
    with closing(source.open()) as reader:
        total = sum(1 for _, _ in zip(range(_MOST_READ), reader, strict=False))
    wanted = set(np.linspace(0, total - 1, min(count, total)).astype(int).tolist()) if total else set()
    images: list[Image] = []
    with closing(source.open()) as reader:
        for index, (_, load) in enumerate(reader):
            if index in wanted:
                images.append(load())
            if len(images) == len(wanted):
                break
    return tuple(images)
