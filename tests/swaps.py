"""Runs of a workload whose weights are not all in memory, with a memory that asserts what is asked of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from threading import Event, get_ident
from typing import Any

import pytest
from profiles import profile
from scripted import Recorder, answer, check, one_by_one

from gemel.errors import BackendError
from gemel.frames.frame import Frame
from gemel.runtime.decode.results import Result
from gemel.runtime.feeds import Feed
from gemel.runtime.loop import pipeline, plans_in_background
from gemel.runtime.loop.plan_input import Swapping
from gemel.runtime.loop.summary import RunStats
from gemel.runtime.planning.planner import POLICIES
from gemel.runtime.planning.profile import Profile

Answer = Callable[[str, Frame], Result]

MODELS = {"a": ["S", "A"], "b": ["S", "B"], "c": ["C", "D"]}
SIZES = {"S": 3, "A": 2, "B": 2, "C": 3, "D": 1}
ON = {"a": "yard", "b": "yard", "c": "gate"}


def known(run: float | Mapping[str, Mapping[int, float]] = 1.0, **fields: Any) -> Profile:
    """Return a profile of three queries, of which two share weights. A byte loads in a millisecond."""
    return profile(MODELS, SIZES, run, 500.0, **{"sla_ms": 1000, **fields})


SPEEDS: list[Callable[[], object] | None] = [None, partial(time.sleep, 0.001)]
"""Loads that end at once, and loads that take a millisecond on another thread; see :class:`Weights`."""


class Weights:
    """A memory with a budget, which asserts that only possible transfers are asked of it.

    Args:
        known: profile with the sizes of segments.
        budget: bytes that may be in memory at once.
        load: called on a thread before a segment is in memory. If left out, segments are there at once.
        fails: returns whether a prefetch fails, given the number of prefetches before.
    """

    def __init__(
        self,
        known: Profile,
        budget: int,
        load: Callable[[], object] | None = None,
        fails: Callable[[int], bool] = lambda count: False,
    ) -> None:
        self.calls = self.loads = self.peak = 0
        self.inside: set[str] = set()
        """Segments in memory or being loaded."""
        self._known, self._budget, self._load, self._fails = known, budget, load, fails
        self._coming: dict[str, object] = {}
        self._loader = ThreadPoolExecutor(1)
        self._thread = get_ident()
        self._lost = False

    def prefetch(self, load: Sequence[str], evict: Sequence[str] = (), done: Callable[[], None] = lambda: None) -> None:
        assert get_ident() == self._thread
        assert load or evict
        self.calls += 1
        if self._fails(self.calls - 1):
            self._lost = True
            raise BackendError("no luck")
        assert self._lost or self.inside >= set(evict), "what is not there cannot go"
        self.inside -= set(evict)
        for segment in evict:
            self._coming.pop(segment, None)
        assert self._lost or not self.inside & set(load), "what is there need not come"
        self._take_in(load)
        if self._load is None:
            done()
            return
        for segment in load:
            token = self._coming[segment] = object()
            self._loader.submit(self._come, segment, token, done if segment == load[-1] else lambda: None)

    def loaded(self, segments: Collection[str]) -> bool:
        return all(segment in self.inside and segment not in self._coming for segment in segments)

    def evict(self) -> None:
        self.inside.clear()
        self._coming.clear()
        self._lost = False

    def use(self, query: str) -> None:
        """Make a query's weights resident, as a backend does before it runs the model."""
        segments = self._known.segments_of(query)
        if self.loaded(segments):
            return
        # pytest.fail, because an ordinary exception would count as a failure of the query.
        if not self._lost:
            pytest.fail(f"query {query} runs without its weights")
        missing = [segment for segment in segments if segment not in self.inside]
        for segment in sorted(self.inside - set(segments)):
            if self._size(self.inside) + self._size(missing) > self._budget:
                self.inside.remove(segment)
        self._take_in(missing)
        for segment in segments:
            self._coming.pop(segment, None)

    def close(self) -> None:
        self._loader.shutdown(wait=False, cancel_futures=True)

    def _take_in(self, segments: Sequence[str]) -> None:
        self.inside |= set(segments)
        self.loads += len(segments)
        self.peak = max(self.peak, self._size(self.inside))
        assert self.peak <= self._budget

    def _come(self, segment: str, token: object, done: Callable[[], None]) -> None:
        assert self._load is not None
        self._load()
        if self._coming.get(segment) is token:
            self._coming.pop(segment, None)
        done()

    def _size(self, segments: Collection[str]) -> int:
        return sum(self._known.segments[segment].bytes for segment in segments)


@contextmanager
def planned_for(queries: str) -> Iterator[Event]:
    """Yield an event that is set when a new plan is made for exactly these queries."""
    told = Event()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage() == f"planned anew for {queries}":
                told.set()

    logger, listener = logging.getLogger(plans_in_background.__name__), Listener()
    logger.setLevel(logging.INFO)
    logger.addHandler(listener)
    try:
        yield told
    finally:
        logger.removeHandler(listener)
        logger.setLevel(logging.NOTSET)


class Runs:
    """Runs of the three queries of :func:`known`, by default in the smallest possible memory."""

    def __init__(self) -> None:
        self.recorder = Recorder()

    def __call__(
        self,
        feeds: Mapping[str, Feed],
        infer: Answer = answer,
        *,
        spec: Profile | None = None,
        policy: str = "gemel",
        size: str | int = "min",
        load: Callable[[], object] | None = None,
        fails: Callable[[int], bool] = lambda count: False,
        queries: Mapping[str, str] = ON,
        **options: Any,
    ) -> RunStats:
        spec = spec or known()
        spec = spec.model_copy(update={"queries": {name: spec.queries[name] for name in queries}})
        budget = spec.budget(size)
        self.memory = memory = Weights(spec, budget, load, fails)

        def run(query: str, frame: Frame) -> Result:
            memory.use(query)
            return infer(query, frame)

        swapping = Swapping(spec, budget, memory, POLICIES[policy])
        try:
            stats = pipeline.run_pipeline(
                queries, feeds, one_by_one(run), [self.recorder], swapping=swapping, **options
            )
        finally:
            memory.close()
        check(stats, feeds, self.recorder)
        return stats


def unanswered(feeds: Mapping[str, Feed], recorder: Recorder, queries: str = "abc") -> list[str]:
    """Return the queries that have no result on the last frame of their feed."""
    return [name for name in queries if recorder.indices(name)[-1] != feeds[ON[name]].delivered - 1]
