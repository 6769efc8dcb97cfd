"""One picture of a feed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Frame", "Image"]

Image = NDArray[np.uint8]
"""``[H, W, 3]`` uint8, BGR."""


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """A delivered frame. Its pixels are read-only: queries and sinks share them."""

    feed: str
    index: int
    """0 for the first frame that the feed delivered; counts on over loops and restarts."""
    image: Image
    time: float
    """Seconds of media since the feed's first frame; grows over loops and restarts."""
    arrived: float
    """Seconds of the monotonic clock at which the frame could be processed."""
