"""Counting and decoding of the frames of a video file."""

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
    """Return the number of frames in a video, by counting its packets.

    Nothing is decoded, and frame counts in headers, which may be wrong or missing, are not used.

    Args:
        source: video file.
        what: name of the query and field, for errors.

    Raises:
        DataError: the file cannot be opened, or has no video stream.
    """
    try:
        container: Any
        with av.open(source.location) as container:
            if not container.streams.video:
                raise DataError(f"{what}: {source}: there is no video stream in it")
            # The last packet of a stream is empty: it flushes the decoder and is no frame.
            return sum(1 for packet in container.demux(video=0) if packet.size)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise DataError(f"{what}: {source}: cannot be read as a video: {reason_of(error)}") from error


def pictures(source: Source, numbers: Sequence[int], what: str) -> Generator[NDArray[np.uint8], None, None]:
    """Decode a video and yield the frames with the given numbers, each ``[H, W, 3]`` uint8 BGR.

    Args:
        source: video file.
        numbers: numbers of the frames, from 0, in rising order. Frames that cannot be decoded have no number.
        what: name of the query and field, for errors.

    Raises:
        DataError: the file cannot be opened or read further.
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
