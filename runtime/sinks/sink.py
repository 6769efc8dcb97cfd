"""The sink: the interface through which a run tells of its results."""

from __future__ import annotations

from collections.abc import Mapping

from ...frames.frame import Frame
from ..decode.results import Result

__all__ = ["Sink"]


class Sink:
    """A receiver of results, called on the thread that runs models.

    The methods of this class do nothing. A subclass overrides those that it needs.
    """

    def on_result(self, query: str, frame: Frame, result: Result, latency_ms: float) -> None:
        """Receive the result of a query on a frame, ``latency_ms`` milliseconds after the frame's arrival."""

    def on_error(self, query: str, frame: Frame, message: str) -> None:
        """Receive the message of a query that failed on a frame."""

    def on_frame(self, frame: Frame, results: Mapping[str, Result]) -> None:
        """Receive a frame that at least one query processed and no query will take any more.

        Args:
            frame: the frame.
            results: by query of the frame's feed, the newest result on this frame or an earlier one.
        """

    def close(self) -> None:
        """Finish the output, as the run is over. Called once.

        Raises:
            GemelError: the output could not be written.
        """
