"""Answering turns: results and failures of queries on frames are counted, and reported to sinks and the trace."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from time import monotonic

from ...frames.frame import Frame
from ..decode.results import Result
from ..sinks.sink import Sink
from ..trace import Trace
from .channel import Left, QueryState

__all__ = ["Answerer", "Infer"]

_log = logging.getLogger(__name__)

Infer = Callable[[Sequence[tuple[str, Frame]]], Iterable[Result | Exception]]
"""Function that runs queries on frames (preprocessing, models, decoding), called with the pairs of a whole turn.

A pair has a query's name and a frame; a call may have pairs of several queries. The function gives one outcome for each
pair, in the same order: the result, or the exception with which the query failed on the frame. A function that yields
outcomes computes them when they are asked for, so that a turn can end early.
"""


class Answerer:
    """Runner of queries on the frames of a turn, which reports every outcome to sinks and the trace.

    Args:
        infer: function that runs queries on frames; called on the runner's thread, never twice at once.
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
        """Function that runs queries on frames; only the runner's thread may exchange it."""
        self._sinks, self._trace = sinks, trace
        self._max_failures, self._again = max_failures, again

    def answer(self, pairs: Sequence[tuple[QueryState, Frame]], stopped: Callable[[], bool] = lambda: False) -> bool:
        """Run queries on the frames of a turn, and report each outcome as soon as it is there.

        An exception of a query is logged and counted, not raised. A query that is given up or paused meanwhile answers
        no more frames of the turn. The turn ends early when ``stopped`` returns true, or no query has a frame left.

        Args:
            pairs: queries, each with a frame to answer; frames of one query are in order.
            stopped: function that returns whether the turn should end early; called before each outcome.

        Returns:
            Whether all pairs have an outcome.

        Raises:
            GemelError: a sink failed.
        """
        outcomes, whole = self._outcomes([(query.name, frame) for query, frame in pairs]), True
        for number, (query, frame) in enumerate(pairs):
            if stopped() or not any(each.alive for each, _ in pairs[number:]):
                return False
            # A query that is paused while its frame runs still answers that frame.
            began, takes = monotonic(), query.alive
            outcome = next(outcomes)
            if not takes:
                whole = False
            elif isinstance(outcome, Exception):
                self._fail(query, frame, f"{type(outcome).__name__}: {outcome}")
            else:
                self._succeed(query, frame, outcome, began)
        return whole

    def tell_left(self, frames: Iterable[Left]) -> None:
        """Report to the sinks the frames that no query will take any more.

        Raises:
            GemelError: a sink failed.
        """
        for frame, results in frames:
            for sink in self._sinks:
                sink.on_frame(frame, results)

    def _outcomes(self, pairs: Sequence[tuple[str, Frame]]) -> Iterator[Result | Exception]:
        """Yield the outcome of each pair. An exception of the whole call is the outcome of all pairs that are left."""
        try:
            yield from self.infer(pairs)
        except Exception as error:
            while True:
                yield error

    def _succeed(self, query: QueryState, frame: Frame, result: Result, began: float) -> None:
        """Count and report a result for which the query ran since ``began``, in seconds of the monotonic clock."""
        now = monotonic()
        if self._trace is not None:
            self._trace.span("run", query.name, began, now, frame=frame.index)
        latency_ms = (now - frame.arrived) * 1000
        if query.gave_up:
            _log.warning("query %s: answers again", query.name)
        query.succeeded(frame, result, latency_ms)
        for sink in self._sinks:
            sink.on_result(query.name, frame, result, latency_ms)

    def _fail(self, query: QueryState, frame: Frame, message: str) -> None:
        query.failed(message, self._max_failures, again=self._again)
        _log.warning("query %s: frame %d of feed %s: %s", query.name, frame.index, frame.feed, message)
        if not query.alive:
            count = query.counters.failures_in_a_row
            later = f"; tried again in {query.pause_left:.0f} s" if self._again else ""
            _log.error("query %s: given up after %d failures in a row: %s%s", query.name, count, message, later)
        for sink in self._sinks:
            sink.on_error(query.name, frame, message)
