"""The frame: one picture of a feed, with its index and times."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Frame", "Image"]

Image = NDArray[np.uint8]
"""Array of the pixels of one picture: ``[H, W, 3]``, uint8, channels in BGR order."""


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """Frame: one picture that a feed delivered. Its pixels are read-only, because queries and sinks share them."""

    feed: str
    """Name of the feed that delivered the frame."""
    index: int
    """Index of a frame in its feed, counted from 0. The count goes on when the source loops or restarts."""
    image: Image
    time: float
    """Seconds of media time since the feed's first frame. The time keeps growing when the source loops or restarts."""
    arrived: float
    """Time at which the camera sent the frame, in seconds of the monotonic clock, by the frame's time stamp.

    A feed that is behind its camera delivers frames that arrived in the past. A frame of a recording arrives when it
    is due, and in an offline run when it is taken.
    """
    at: float = 0.0
    """Time at which the camera sent a frame (the moment of ``arrived``) as Unix time, in seconds of the wall clock; 0
    for a frame that no feed delivered."""
