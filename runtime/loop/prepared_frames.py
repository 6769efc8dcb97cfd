"""Model inputs made from recent frames, so that queries that want equal inputs prepare each frame once."""

from __future__ import annotations

from collections.abc import Mapping

from ...bundles.manifest import InputSpec
from ...frames.frame import Frame
from ...frames.preprocess import Geometry, preprocess
from ..decode import FloatArray

__all__ = ["PreparedFrames"]


class PreparedFrames:
    """Model inputs made from the newest frames, which queries of one feed share if their input specs are equal.

    Args:
        depths: feed -> maximum number of frames to keep for each input spec; 1 for a feed that is left out.
    """

    def __init__(self, depths: Mapping[str, int]) -> None:
        self._depths = depths
        self._kept: dict[tuple[str, InputSpec], dict[int, tuple[FloatArray, Geometry]]] = {}
        """(feed, input spec) -> frame index -> prepared frame, and position of the frame in the model's input."""

    def prepare(self, frame: Frame, spec: InputSpec) -> tuple[FloatArray, Geometry]:
        """Return a frame as the model input that ``spec`` describes, and the position of the frame in that input.

        The input is made at the first call and kept for later calls.
        """
        kept = self._kept.setdefault((frame.feed, spec), {})
        if frame.index not in kept:
            if len(kept) == self._depths.get(frame.feed, 1):
                # Frames leave the channel of their feed in order, the oldest first.
                del kept[min(kept)]
            kept[frame.index] = preprocess(frame.image, spec)
        return kept[frame.index]
