"""Feeds that follow a script, a sink that remembers, and a check of what holds after every run."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from threading import Event

import numpy as np

from gemel.frames.frame import Frame
from gemel.frames.reader import Picture
from gemel.runtime.decode.results import Class, Result
from gemel.runtime.feeds import Backoff, Feed
from gemel.runtime.loop.answerer import Infer
from gemel.runtime.loop.summary import RunStats
from gemel.runtime.sinks import Sink

_MOST = 10_000
"""Pictures after which a source gives up an event that never happens."""


class Script:
    """A source of pictures that follows a script, from the beginning at each opening.

    Args:
        most: pictures before the source ends or fails.
        live: whether the source is a camera.
        pause: the longest pause before a picture, in seconds.
        failure: raised at the end.
        seed: seed of the pauses.
        held: index of a picture -> event that the picture waits for.
        until: while this event is not set, pictures come beyond ``most``.
    """

    def __init__(
        self,
        most: int,
        *,
        live: bool = False,
        pause: float = 0.0,
        failure: Exception | None = None,
        seed: int = 0,
        held: Mapping[int, Event] | None = None,
        until: Event | None = None,
    ) -> None:
        self.live = live
        self.finite = not live
        self.period = 0.001
        self.corrupt = self.withheld = self.behind = 0
        self.clocked = False
        self.again_s = self.captured = None
        self._most = most
        self._pause = pause
        self._failure = failure
        self._random = random.Random(seed)
        self._held, self._until = held or {}, until

    def open(self, patience: float = 1.0) -> Script:
        return self

    def close(self) -> None:
        pass

    def __iter__(self) -> Iterator[Picture]:
        for i in count():
            if i >= self._most and (self._until is None or self._until.is_set() or i >= _MOST):
                break
            if self._pause:
                time.sleep(self._random.uniform(0, self._pause))
            if i in self._held:
                assert self._held[i].wait(10)
            # Stamps a millisecond apart, so that pacing plays no part.
            yield i / 1000, lambda: np.zeros((2, 3, 3), np.uint8)
        if self._failure is not None:
            raise self._failure


def feed(name: str, most: int, *, loop: bool = False, **script: object) -> Feed:
    """Return a feed of a scripted source that is opened again after a millisecond at most; see :class:`Script`."""
    return Feed(name, Script(most, **script), loop=loop, backoff=Backoff(0.0005, 0.001))  # type: ignore[arg-type]


class Recorder(Sink):
    """A sink that keeps what it is told."""

    def __init__(self) -> None:
        self.results: list[tuple[str, int, Result]] = []
        self.errors: list[tuple[str, int, str]] = []
        self.frames: list[tuple[Frame, dict[str, Result]]] = []
        self.latencies: list[float] = []
        self.closed = 0

    def on_result(self, query: str, frame: Frame, result: Result, latency_ms: float) -> None:
        self.results.append((query, frame.index, result))
        self.latencies.append(latency_ms)

    def on_error(self, query: str, frame: Frame, message: str) -> None:
        self.errors.append((query, frame.index, message))

    def on_frame(self, frame: Frame, results: Mapping[str, Result]) -> None:
        self.frames.append((frame, dict(results)))

    def close(self) -> None:
        self.closed += 1

    def indices(self, query: str) -> list[int]:
        """Return the indices of the frames that a query answered, in order."""
        return [index for name, index, _ in self.results if name == query]


def answer(query: str, frame: Frame) -> Result:
    """Answer with a class whose label names the query and the frame."""
    return (Class(f"{query}-{frame.index}", 1.0),)


def one_by_one(run: Callable[[str, Frame], Result] = answer) -> Infer:
    """Return a function that answers a turn by calling ``run`` for each query and frame, when its outcome is wanted."""

    def infer(pairs: Sequence[tuple[str, Frame]]) -> Iterator[Result | Exception]:
        for query, frame in pairs:
            try:
                outcome: Result | Exception = run(query, frame)
            except Exception as error:
                outcome = error
            yield outcome

    return infer


def check(stats: RunStats, feeds: Mapping[str, Feed], recorder: Recorder) -> None:
    """Check what holds after every run: counts add up, and frames come in order and once."""
    for name, query in stats.queries.items():
        assert query.frames == feeds[query.feed].delivered
        assert query.frames == query.processed + query.skipped
        assert query.processed == len(recorder.indices(name))
        assert 0 <= query.processed + query.errors <= query.frames
        assert query.errors == sum(error[0] == name for error in recorder.errors)
        indices = recorder.indices(name)
        assert indices == sorted(set(indices))
        assert all(0 <= index < query.frames for index in indices)
    used = {(stats.queries[name].feed, index) for name, index, _ in recorder.results}
    written = [(frame.feed, frame.index) for frame, _ in recorder.frames]
    assert len(written) == len(set(written))
    assert set(written) == used
    for name in feeds:
        order = [frame.index for frame, _ in recorder.frames if frame.feed == name]
        assert order == sorted(order)
    assert all(latency >= 0 for latency in recorder.latencies)
    assert recorder.closed == 1
