"""Interface of a sink, which receives the results of a run."""

from __future__ import annotations

from collections.abc import Mapping

from ...frames.frame import Frame
from ..decode.results import Result

__all__ = ["Sink"]


class Sink:
    """Receiver of a run's results. The methods of this class do nothing; a subclass overrides those that it needs.

    :func:`gemel.run_bundle` calls the methods of a sink one after the other on a thread of the sink's own, behind a
    queue with a limit. A sink may therefore be slow or wait for a network: the run goes on. If the queue is full, the
    oldest event in it is dropped. If a method raises an exception, the event counts as failed, one line is logged, and
    the sink is called again with the next event.
    """

    pixels: bool = True
    """Whether the sink reads ``frame.image``. If not, frames come without pixels, and many more events can wait."""
    queued: bool = True
    """Whether the sink gets a queue. A sink that only notes something in memory needs no queue. Its methods are then
    called on the thread that runs models, and must return at once."""

    def on_result(self, query: str, frame: Frame, result: Result, latency_ms: float) -> None:
        """Receive the result of a query on a frame, ``latency_ms`` milliseconds after the frame's arrival."""

    def on_error(self, query: str, frame: Frame, message: str) -> None:
        """Receive the error message of a query that failed on a frame."""

    def on_frame(self, frame: Frame, results: Mapping[str, Result]) -> None:
        """Receive a frame that at least one query processed and that no query will take any more.

        Args:
            frame: frame of a feed.
            results: query of the frame's feed -> newest result on this frame or an earlier one.
        """

    def close(self) -> None:
        """Finish the sink's output at the end of the run. Called once, after the last event."""
