"""Running queries on feeds from start to end: limits are checked here, and feeds and sinks are closed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from threading import Event

from ...errors import FeedError, InputError
from ..feeds import Feed
from ..sinks.sink import Sink
from ..trace import Trace
from .answerer import Answerer, Infer
from .plan_input import Swapping
from .runner import Runner
from .summary import RunStats

__all__ = ["run_pipeline"]


def run_pipeline(
    queries: Mapping[str, str],
    feeds: Mapping[str, Feed],
    infer: Infer,
    sinks: Sequence[Sink] = (),
    *,
    live: bool = True,
    frames: int | None = None,
    duration: float | None = None,
    stop: Event | None = None,
    swapping: Swapping | None = None,
    trace: Trace | None = None,
    max_failures: int = 10,
    started: Callable[[Runner], None] = lambda runner: None,
    beat: Callable[[], None] = lambda: None,
) -> RunStats:
    """Run every query on its feed until the feeds end, a limit is reached or ``stop`` is set.

    In a live run, a query takes the newest frames of its feed in its turn: as many as the plan allows and as can be
    answered in time. Other frames are skipped. In an offline run, every query processes every frame. A query that
    fails on a frame skips that frame and goes on; after ``max_failures`` failures in a row the query is given up. A
    live run tries it again after a pause, which doubles each time. An offline run does not, and ends when all queries
    are given up.

    A new plan is made when a query is given up, when a feed has ended or gives no frames, and when runs take much
    longer or shorter than the profile says.

    Args:
        queries: query -> name of its feed, in the order of the workload.
        feeds: name -> feed that was not started yet; feeds without a query are left alone.
        infer: function that runs queries on the frames of a turn; called on this thread, never twice at once.
        sinks: receivers of results; closed at the end, also after an error.
        live: whether to run live; otherwise offline.
        frames: number of frames of each feed after which the run ends, once these frames are handled.
        duration: seconds after which the run ends.
        stop: event that ends the run early when it is set, from a signal handler or another thread. Frames still
            waiting are skipped.
        swapping: input of plans; when left out, all weights are in memory and each turn takes one frame.
        trace: trace that records every frame that is answered.
        max_failures: number of failures in a row after which a query is given up.
        started: function called when the run begins, with the runner, whose statistics may be read, and whose lineup
            may be changed, on any thread.
        beat: function called at least every two seconds, as a sign of life, unless a model runs for longer.

    Raises:
        InputError: there are no queries, or a limit is not positive.
        FeedError: a query's feed does not exist.
        GemelError: a sink failed.
    """
    with ExitStack() as stack:
        for sink in sinks:
            stack.callback(sink.close)
        _check(queries, feeds, frames, duration)
        answerer = Answerer(infer, sinks, trace, max_failures, again=live)
        runner = Runner(queries, feeds, answerer, swapping, live=live, stop=stop or Event(), beat=beat)
        stack.callback(runner.halt)
        started(runner)
        return runner.run(frames, duration)


def _check(queries: Mapping[str, str], feeds: Mapping[str, Feed], frames: int | None, duration: float | None) -> None:
    if not queries:
        raise InputError("there are no queries to run")
    if frames is not None and frames < 1:
        raise InputError(f"frames must be at least 1, got {frames}")
    if duration is not None and duration <= 0:
        raise InputError(f"duration must be more than 0 seconds, got {duration}")
    for query, feed in queries.items():
        if feed not in feeds:
            raise FeedError(f"query {query!r}: feed {feed!r} does not exist; feeds are {', '.join(feeds) or 'none'}")
