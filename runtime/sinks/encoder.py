"""The encoder of one video file."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from ...frames.frame import Image

__all__ = ["Encoder", "fit_image"]

_TICKS = 1000
"""Ticks a second of time stamps: fine enough for cameras; MPEG-4 allows no denominator above 65535."""


class Encoder:
    """An MP4 file of frames with their own time stamps. The first frame sets the size, which is made even.

    Raises:
        OSError, av.FFmpegError: the file cannot be written.
    """

    def __init__(self, path: Path, first: Image) -> None:
        height, width = first.shape[:2]
        self._size = (width + width % 2, height + height % 2)
        self._container = av.open(str(path), "w", format="mp4", options={"movflags": "faststart"})
        self._stream = _stream(self._container)
        self._stream.width, self._stream.height = self._size
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = Fraction(1, _TICKS)
        self._last = -1

    def write(self, image: Image, time: float) -> None:
        """Add a frame ``[H, W, 3]`` BGR at ``time`` seconds."""
        frame = av.VideoFrame.from_ndarray(fit_image(image, self._size), format="bgr24")
        # The container refuses two frames with the same time stamp.
        self._last = max(self._last + 1, round(time * _TICKS))
        frame.pts, frame.time_base = self._last, Fraction(1, _TICKS)
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Write the frames still in the encoder, and the index without which the file cannot be played."""
        try:
            self._container.mux(self._stream.encode(None))
        finally:
            self._container.close()


def fit_image(image: Image, size: tuple[int, int]) -> Image:
    """Fit an image into ``size`` (width, height), and keep its aspect ratio.

    A missing last column or row is a copy of the one before. Images of other sizes, which a camera may send after a
    restart, are scaled and centred on black.
    """
    width, height = size
    rows, columns = image.shape[:2]
    if 0 <= width - columns <= 1 and 0 <= height - rows <= 1:
        padding = ((0, height - rows), (0, width - columns), (0, 0))
        return np.ascontiguousarray(np.pad(image, padding, mode="edge"))
    ratio = min(width / columns, height / rows)
    inner = (min(width, max(1, round(columns * ratio))), min(height, max(1, round(rows * ratio))))
    canvas = np.zeros((height, width, 3), np.uint8)
    x, y = (width - inner[0]) // 2, (height - inner[1]) // 2
    canvas[y : y + inner[1], x : x + inner[0]] = cv2.resize(image, inner, interpolation=cv2.INTER_AREA)
    return canvas


def _stream(container: Any) -> Any:
    """Add a video stream to a container: H.264 if this FFmpeg can encode it, otherwise MPEG-4."""
    try:
        av.Codec("libx264", "w")
    except (av.FFmpegError, ValueError):
        return container.add_stream("mpeg4", rate=30, bit_rate=4_000_000)
    return container.add_stream("libx264", rate=30, options={"preset": "veryfast", "crf": "21"})
