"""Running queries on frames: results and failures are counted, and reported to sinks and the trace."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from time import monotonic

from ...frames.frame import Frame
from ..decode.results import Result
from ..sinks.sink import Sink
from ..trace import Trace
from .channel import Left, QueryState

__all__ = ["Answerer", "Infer"]

_log = logging.getLogger(__name__)

Infer = Callable[[str, Frame], Result]
"""Function that runs a query on a frame (preprocessing, model, decoding), called with the query's name and a frame."""


class Answerer:
    """Runner of single queries on single frames, which reports every outcome to sinks and the trace.

    Args:
        infer: function that runs a query on a frame; called on the runner's thread, never twice at once.
        sinks: receivers of results, failures, and frames that no query will take any more.
        trace: trace that records every frame that is answered.
        max_failures: number of failures in a row after which a query is given up.
        again: whether a query that was given up is tried again after a pause.
    """

    def __init__(
        self,
        infer: Infer,
        sinks: Sequence[Sink] = (),
        trace: Trace | None = None,
        max_failures: int = 10,
        *,
        again: bool = False,
    ) -> None:
        self.infer = infer
        """Function that runs a query on a frame; only the runner's thread may exchange it."""
        self._sinks, self._trace = sinks, trace
        self._max_failures, self._again = max_failures, again

    def answer(self, query: QueryState, frame: Frame) -> None:
        """Run a query on a frame. An exception of the query is logged and counted, not raised.

        Raises:
            GemelError: a sink failed.
        """
        began = monotonic()
        try:
            result = self.infer(query.name, frame)
        except Exception as error:
            self._fail(query, frame, f"{type(error).__name__}: {error}")
            return
        now = monotonic()
        if self._trace is not None:
            self._trace.span("run", query.name, began, now, frame=frame.index)
        latency_ms = (now - frame.arrived) * 1000
        if query.gave_up:
            _log.warning("query %s: answers again", query.name)
        query.succeeded(frame, result, latency_ms)
        for sink in self._sinks:
            sink.on_result(query.name, frame, result, latency_ms)

    def tell_left(self, frames: Iterable[Left]) -> None:
        """Report to the sinks the frames that no query will take any more.

        Raises:
            GemelError: a sink failed.
        """
        for frame, results in frames:
            for sink in self._sinks:
                sink.on_frame(frame, results)

    def _fail(self, query: QueryState, frame: Frame, message: str) -> None:
        query.failed(message, self._max_failures, again=self._again)
        _log.warning("query %s: frame %d of feed %s: %s", query.name, frame.index, frame.feed, message)
        if not query.alive:
            count = query.counters.failures_in_a_row
            later = f"; tried again in {query.pause_left:.0f} s" if self._again else ""
            _log.error("query %s: given up after %d failures in a row: %s%s", query.name, count, message, later)
        for sink in self._sinks:
            sink.on_error(query.name, frame, message)
