"""The frame: one picture of a feed, with its index and times."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Frame", "Image"]

Image = NDArray[np.uint8]
"""Pixels, ``[H, W, 3]`` uint8, BGR."""


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """A frame that a feed delivered. Pixels are read-only, because queries and sinks share them."""

    feed: str
    """Name of the feed."""
    index: int
    """Number of the frame: 0 for the first that the feed delivered. Counts on over loops and restarts."""
    image: Image
    time: float
    """Seconds of media since the feed's first frame. Grows on over loops and restarts."""
    arrived: float
    """Second of the monotonic clock from which the frame could be processed."""
