"""Encoder that writes frames to one MP4 file, which can be played also if the run is killed."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from av.video.frame import PictureType

from ...frames.frame import Image

__all__ = ["Encoder", "fit_image"]

_TICKS = 1000
"""Number of units per second in a video's time stamps: enough for cameras, and below MPEG-4's limit of 65535."""
_FRAGMENT_S = 1.0
"""Seconds of video in one fragment, which is how much of a file a kill may lose."""
_KEY_FRAME_S = 5.0
"""Maximum seconds between two key frames, from which a player can begin."""
_MP4 = {
    # Without an index at the end, and flushed after each fragment, a file is whole up to its last fragment.
    "movflags": "empty_moov+default_base_moof",
    "frag_duration": str(int(_FRAGMENT_S * 1e6)),
    "flush_packets": "1",
}


class Encoder:
    """Encoder of an MP4 file. Frames have time stamps; the video is as large as the first frame, made even.

    Raises:
        OSError, av.FFmpegError: the file cannot be written.
    """

    def __init__(self, path: Path, first: Image) -> None:
        height, width = first.shape[:2]
        self._size = (width + width % 2, height + height % 2)
        self._container = av.open(str(path), "w", format="mp4", options=_MP4)
        try:
            self._stream = _stream(self._container)
            self._stream.width, self._stream.height = self._size
            self._stream.pix_fmt = "yuv420p"
            self._stream.codec_context.time_base = Fraction(1, _TICKS)
        except BaseException:
            self._container.close()
            raise
        self._last, self._key = -1, 0.0

    def write(self, image: Image, time: float) -> None:
        """Encode a frame, ``[H, W, 3]`` BGR, with a time stamp of ``time`` seconds."""
        frame = av.VideoFrame.from_ndarray(fit_image(image, self._size), format="bgr24")
        # The container refuses two frames with the same time stamp.
        self._last = max(self._last + 1, round(time * _TICKS))
        frame.pts, frame.time_base = self._last, Fraction(1, _TICKS)
        if time - self._key >= _KEY_FRAME_S:
            self._key = time
            frame.pict_type = PictureType.I
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Finish the video file: write the frames that are still in the encoder."""
        try:
            self._container.mux(self._stream.encode(None))
        finally:
            self._container.close()


def fit_image(image: Image, size: tuple[int, int]) -> Image:
    """Return a frame fitted into a video's ``size`` (width, height), with its aspect ratio kept.

    If only the last column or row is missing, it is copied from the column or row before. A frame of another size,
    which a camera may send after a restart, is scaled and centred on black.
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
    """Add a video stream to a PyAV container and return it: H.264 if this FFmpeg can encode it, otherwise MPEG-4."""
    try:
        av.Codec("libx264", "w")
    except (av.FFmpegError, ValueError):
        return container.add_stream("mpeg4", rate=30, bit_rate=4_000_000)
    # Tuned for latency, the encoder holds no frames back: at 1 frame per second, 30 of them would be lost by a kill.
    options = {"preset": "veryfast", "crf": "21", "tune": "zerolatency", "forced-idr": "1"}
    return container.add_stream("libx264", rate=30, options=options)
