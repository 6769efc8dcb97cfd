"""Frames of a recording."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from ...errors import DataError, FeedError
from ...frames.reader import reason_of
from ...frames.source import Source

__all__ = ["count_frames", "pictures"]


def count_frames(source: Source, what: str) -> int:
    """Frames in a video, by its packets: nothing is decoded, and headers that lie or are missing do not matter.

    Raises:
        DataError: it cannot be opened, or has no video.
    """
    try:
        container: Any
        with av.open(source.location) as container:
            if not container.streams.video:
                raise DataError(f"{what}: {source}: there is no video stream in it")
            # The last packet of a stream is empty: it tells the decoder to give what it holds back.
            return sum(1 for packet in container.demux(video=0) if packet.size)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise DataError(f"{what}: {source}: cannot be read as a video: {reason_of(error)}") from error


def pictures(source: Source, numbers: Sequence[int], what: str) -> Generator[NDArray[np.uint8], None, None]:
    """The frames ``numbers`` (growing) of a video, ``[H, W, 3]`` BGR. Frames that cannot be decoded do not count.

    Raises:
        DataError: it cannot be read on.
    """
    wanted = set(numbers)
    try:
        with closing(source.open()) as reader:
            for number, (_, load) in enumerate(reader):
                if number in wanted:
                    yield load()
                    if number == numbers[-1]:
                        return
    except (FeedError, av.FFmpegError) as error:
        raise DataError(f"{what}: {source}: {reason_of(error)}") from error
