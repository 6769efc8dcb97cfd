"""Feeds that follow a script, a sink that remembers, and what holds after every run."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping
from itertools import count
from threading import Event

import numpy as np

from gemel.frames.frame import Frame
from gemel.frames.reader import Picture
from gemel.runtime.decode.results import Class, Result
from gemel.runtime.feeds import Backoff, Feed
from gemel.runtime.loop.summary import RunStats
from gemel.runtime.sinks import Sink

_MOST = 10_000
"""Pictures that come while an event is awaited which does not happen."""


class Script:
    """A source of ``most`` pictures with pauses, which then ends or fails, at each opening anew.

    Pictures in ``held`` wait for an event each; until ``until`` there are more than that.
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
        self.corrupt = 0
        self._most = most
        self._pause = pause
        self._failure = failure
        self._random = random.Random(seed)
        self._held, self._until = held or {}, until

    def open(self) -> Script:
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
            # A thousand a second: pacing plays no part.
            yield i / 1000, lambda: np.zeros((2, 3, 3), np.uint8)
        if self._failure is not None:
            raise self._failure


def feed(name: str, most: int, *, loop: bool = False, **script: object) -> Feed:
    return Feed(name, Script(most, **script), loop=loop, backoff=Backoff(0.0005, 0.001))  # type: ignore[arg-type]


class Recorder(Sink):
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
        return [index for name, index, _ in self.results if name == query]


def answer(query: str, frame: Frame) -> Result:
    return (Class(f"{query}-{frame.index}", 1.0),)


def check(stats: RunStats, feeds: Mapping[str, Feed], recorder: Recorder) -> None:
    """What holds after every run."""
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
