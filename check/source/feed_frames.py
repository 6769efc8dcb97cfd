"""Frames on which a bundle is compared with its source models: frames of a query's feed, or seeded noise."""

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
"""Number of frames at the beginning of a recording among which the frames to compare on are chosen."""
_NOISE_SIZE = (480, 640)
"""Height and width in pixels of a frame of noise."""


@dataclass(frozen=True)
class FeedFrames:
    """Frames of one feed on which a bundle is compared with its source models."""

    images: tuple[Image, ...]
    """Frames, ``[H, W, 3]`` BGR, that both the bundle and its source models answer; at least one."""
    words: str
    """Description of where the frames of a comparison are from, for messages."""
    is_noise: bool = False
    """Whether the frames of a comparison are noise, so that answers on them mean nothing."""


def read_feed_frames(workload: Workload, feed: str, count: int) -> FeedFrames:
    """Read evenly spread frames from the beginning of a feed's recording; return one frame of noise if there is none.

    Args:
        workload: workload with the feed.
        feed: name of the feed.
        count: maximum number of frames to return.
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
    """Return evenly spread frames from the beginning of a recording.

    The recording is read twice, first to count its frames, so that only the chosen frames are kept in memory.
    """
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
