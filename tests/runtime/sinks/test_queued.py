"""Queues of outputs: nothing holds up the run, every event is counted, and what failed comes back."""

from __future__ import annotations

import logging
import random
from collections import deque
from collections.abc import Iterator
from threading import Event as Flag

import pytest
from sink_events import event, wait_until

from gemel.runtime.sinks import queued
from gemel.runtime.sinks.events import SinkEvent
from gemel.runtime.sinks.queued import QueuedWriter
from gemel.runtime.sinks.writer import RefusedError, Writer


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make pauses and grace short."""
    monkeypatch.setattr(queued, "_FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(queued, "_GRACE_S", 0.3)
    monkeypatch.setattr(queued, "_PATIENCE_S", 0.2)


class Memory(Writer):
    """Writer that keeps what it gets, fails as it is told, and waits at a gate."""

    longest_pause = 0.002

    def __init__(self, failures: Iterator[Exception | None] | None = None, **limits: float) -> None:
        self.got: list[int] = []
        self.closed = 0
        self.gate = Flag()
        self.gate.set()
        self._failures = iter(()) if failures is None else failures
        for name, value in limits.items():
            setattr(self, name, value)

    def write(self, batch: deque[SinkEvent]) -> None:
        assert self.gate.wait(20)
        if (error := next(self._failures, None)) is not None:
            raise error
        while batch:
            self.got.append(batch[0].frame.index)
            batch.popleft()

    def close(self) -> None:
        self.closed += 1


def finished(queue: QueuedWriter) -> dict[str, object]:
    """End a queue, and return its counts."""
    queue.finish()
    queue.join()
    return queue.counts().to_json()


def test_everything_is_written_in_order() -> None:
    writer = Memory(batch=7)
    queue = QueuedWriter("x", writer)
    for i in range(100):
        queue.offer(event(i))
    counts = finished(queue)
    assert writer.got == list(range(100))
    assert writer.closed == 1
    assert counts == {
        "offered": 100,
        "written": 100,
        "dropped": 0,
        "failed": 0,
        "waiting": 0,
        "error": None,
        "state": "working",
    }


def test_a_full_queue_drops_the_oldest_and_counts_them(caplog: pytest.LogCaptureFixture) -> None:
    writer = Memory(depth=5)
    writer.target = "nowhere"
    writer.gate.clear()
    queue = QueuedWriter("x", writer)
    queue.offer(event(0))
    wait_until(lambda: queue.counts().waiting == 1 and not queue._items, "the writer takes the first event")
    for i in range(1, 21):
        queue.offer(event(i))
    assert queue.counts().state == "behind"
    assert (queue.counts().dropped, queue.counts().waiting) == (15, 6)
    writer.gate.set()
    counts = finished(queue)
    assert writer.got == [0, *range(16, 21)]
    assert (counts["offered"], counts["written"], counts["dropped"]) == (21, 6, 15)
    assert [each.getMessage() for each in caplog.records] == [
        "output x (nowhere): too slow: the oldest of 5 waiting are dropped"
    ]


def test_large_events_count_by_their_bytes() -> None:
    writer = Memory(depth=1000, most_bytes=300_000)
    writer.gate.clear()
    queue = QueuedWriter("x", writer)
    for i in range(20):
        queue.offer(event(i, size=(200, 166)))  # 99,600 bytes of pixels
    assert queue.counts().waiting <= 4
    writer.gate.set()
    assert finished(queue)["dropped"] >= 16  # type: ignore[operator]


def test_a_queue_that_fills_is_emptied_before_its_time(caplog: pytest.LogCaptureFixture) -> None:
    writer = Memory(batch=100, linger=60, most_bytes=1_000_000)
    queue = QueuedWriter("x", writer)
    for i in range(50):
        queue.offer(event(i, size=(200, 166)))  # 99,600 bytes of pixels
        wait_until(lambda: queue.counts().waiting < 9, "the queue is emptied")
    assert finished(queue)["written"] == 50
    assert not caplog.records


def test_an_event_larger_than_the_limit_still_goes_through() -> None:
    writer = Memory(most_bytes=10)
    queue = QueuedWriter("x", writer)
    queue.offer(event(0))
    assert finished(queue)["written"] == 1


def test_what_fails_for_a_while_is_tried_again_and_logged_twice(caplog: pytest.LogCaptureFixture) -> None:
    failures: list[Exception | None] = [OSError(28, "No space left on device")] * 5
    writer = Memory(iter(failures))
    queue = QueuedWriter("x", writer)
    for i in range(10):
        queue.offer(event(i))
    wait_until(lambda: queue.counts().written == 10, "the events are written after the failures")
    assert queue.counts().state == "working"
    assert finished(queue)["error"] == "No space left on device"
    assert writer.got == list(range(10))
    first, second = (each.getMessage() for each in caplog.records)
    assert first == "output x: No space left on device"
    assert second.startswith("output x: works again after 0 s; 0 dropped, 0 failed so far")


def test_what_is_refused_is_lost_and_the_rest_goes_on() -> None:
    writer = Memory(iter([RefusedError("HTTP 400"), None]), batch=4)
    writer.gate.clear()
    queue = QueuedWriter("x", writer)
    for i in range(8):
        queue.offer(event(i))
    writer.gate.set()
    counts = finished(queue)
    assert counts["failed"] == len(set(range(8)) - set(writer.got)) > 0
    assert (counts["written"], counts["error"]) == (len(writer.got), "HTTP 400")


def test_one_event_that_cannot_be_written_does_not_take_others_with_it() -> None:
    writer = Memory(iter([ValueError("no JSON\nin two lines")]), batch=4)
    queue = QueuedWriter("x", writer)
    for i in range(8):
        queue.offer(event(i))
    counts = finished(queue)
    assert (counts["failed"], counts["written"], writer.got) == (1, 7, list(range(1, 8)))
    assert counts["error"] == "no JSON"


def test_an_output_that_fails_at_the_end_is_dropped_and_named() -> None:
    queue = QueuedWriter("x", Memory(iter(lambda: OSError("gone"), None)))
    for i in range(10):
        queue.offer(event(i))
    counts = finished(queue)
    assert (counts["written"], counts["dropped"], counts["waiting"], counts["state"]) == (0, 10, 0, "failing")


def test_a_writer_that_never_returns_does_not_hold_up_the_end() -> None:
    writer = Memory()
    writer.gate.clear()
    queue = QueuedWriter("x", writer)
    for i in range(10):
        queue.offer(event(i))
    counts = finished(queue)
    assert (counts["offered"], counts["dropped"], counts["waiting"]) == (10, 10, 0)
    assert "not finished" in str(counts["error"])
    writer.gate.set()
    queue._thread.join(10)
    assert queue.counts().offered == 10


def test_events_after_the_end_are_counted() -> None:
    queue = QueuedWriter("x", Memory())
    finished(queue)
    queue.offer(event(0))
    assert (queue.counts().dropped, queue.counts().offered) == (1, 1)


def test_a_run_that_is_not_live_waits_for_a_slow_output() -> None:
    writer = Memory(depth=2)
    queue = QueuedWriter("x", writer, patient=True)
    for i in range(200):
        queue.offer(event(i))
    assert finished(queue)["written"] == 200


def test_it_does_not_wait_for_an_output_that_stands_still() -> None:
    writer = Memory(depth=2)
    writer.gate.clear()
    queue = QueuedWriter("x", writer, patient=True)
    # The first wait is for 0.2 s; with a wait each, 200 events would take 40 s, which the next line limits.
    for i in range(200):
        queue.offer(event(i))
    assert queue.counts().dropped >= 190
    writer.gate.set()
    counts = finished(queue)
    assert counts["offered"] == counts["written"] + counts["dropped"] == 200  # type: ignore[operator]


def test_it_does_not_wait_for_an_output_that_fails() -> None:
    writer = Memory(iter(lambda: OSError("gone"), None), depth=2)
    queue = QueuedWriter("x", writer, patient=True)
    for i in range(200):
        queue.offer(event(i))
    assert finished(queue)["offered"] == 200


def test_a_check_that_raises_is_counted() -> None:
    class Picky(Memory):
        def wants(self, event: SinkEvent) -> bool:
            if event.frame.index == 1:
                raise ValueError("damaged")
            return event.frame.index != 2

    queue = QueuedWriter("x", Picky())
    for i in range(4):
        queue.offer(event(i))
    counts = finished(queue)
    assert (counts["offered"], counts["written"], counts["failed"]) == (3, 2, 1)


def test_an_output_that_comes_and_goes_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    queue = QueuedWriter("x", Memory(iter([ValueError("odd"), None] * 200)))
    for i in range(300):
        queue.offer(event(i))
    counts = finished(queue)
    assert (counts["failed"], counts["written"]) == (150, 150)
    assert 1 <= len(caplog.records) <= 5


@pytest.mark.parametrize("seed", range(5))
def test_counts_always_add_up(seed: int, caplog: pytest.LogCaptureFixture) -> None:
    chance = random.Random(seed)

    def failures() -> Iterator[Exception | None]:
        while True:
            kinds: list[Exception | None] = [None, None, None, OSError("x"), RefusedError("x"), ValueError("x")]
            yield chance.choice(kinds)

    with caplog.at_level(logging.CRITICAL):
        writer = Memory(failures(), depth=20, batch=chance.randint(1, 8), linger=chance.choice([0.0, 0.001]))
        queue = QueuedWriter("x", writer)
        for i in range(2000):
            queue.offer(event(i))
            counts = queue.counts()
            assert counts.offered == i + 1
        counts_at_end = finished(queue)
    assert counts_at_end["offered"] == 2000
    assert counts_at_end["waiting"] == 0
    assert counts_at_end["written"] == len(writer.got)
    assert writer.got == sorted(set(writer.got))
