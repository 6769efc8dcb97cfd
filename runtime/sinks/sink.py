"""What a sink is told."""

from __future__ import annotations

from collections.abc import Mapping

from ...frames.frame import Frame
from ..decode.results import Result

__all__ = ["Sink"]


class Sink:
    """Told of what happens, on the thread that runs models.

    By itself it does nothing: a subclass overrides what it wants to hear.
    """

    def on_result(self, query: str, frame: Frame, result: Result, latency_ms: float) -> None:
        """A query processed a frame, ``latency_ms`` after its arrival."""

    def on_error(self, query: str, frame: Frame, message: str) -> None:
        """A query failed on a frame."""

    def on_frame(self, frame: Frame, results: Mapping[str, Result]) -> None:
        """A frame that at least one query processed will not be looked at again.

        Args:
            results: the latest result of every query of the frame's feed that has one, on this frame or an earlier one.
        """

    def close(self) -> None:
        """The run is over. Called once.

        Raises:
            GemelError: something could not be written.
        """
