"""The runner as a conductor sees it: looking has no effects, and frames come in only where they are asked for."""

from __future__ import annotations

from threading import Condition, Event

import pytest
from scripted import Recorder, feed, one_by_one

from gemel.runtime.loop.answerer import Answerer
from gemel.runtime.loop.runner import Runner

LONG_S = 30.0


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def started(recorder: Recorder, frames: int, *, stop: Event | None = None) -> Runner:
    """Return a runner of one query, whose feed has delivered all its frames and ended."""
    yard = feed("yard", frames)
    runner = Runner(
        {"a": "yard"}, {"yard": yard}, Answerer(one_by_one(), [recorder]), None, live=True, stop=stop or Event()
    )
    yard.start(Condition(), depth=max(frames, 1))
    yard.join(LONG_S)
    return runner


def test_whether_it_is_over_can_be_asked_without_effects(recorder: Recorder) -> None:
    runner = started(recorder, 3)
    for _ in range(3):
        assert not runner.over
        # No frame was taken in.
        assert len(runner.fresh("a", 9, 0.0)) == 0
    runner.take_in()
    assert not runner.over
    assert len(runner.fresh("a", 9, 0.0)) == 1
    runner.process("a", 1)
    assert runner.over
    # The frame leaves when the runner ends, not when somebody asks.
    assert not recorder.frames


def test_a_feed_that_ends_between_two_looks_is_answered(recorder: Recorder) -> None:
    # The feed has ended, but holds its last frame: neither before nor after it was taken in, the run is over.
    runner = started(recorder, 1)
    assert not runner.over
    runner.take_in()
    assert not runner.over
    runner.process("a", 1)
    assert runner.over and recorder.indices("a") == [0]


def test_a_runner_that_was_stopped_is_over_and_processes_nothing(recorder: Recorder) -> None:
    stop = Event()
    runner = started(recorder, 1, stop=stop)
    runner.take_in()
    stop.set()
    assert runner.over
    runner.process("a", 1)
    assert not recorder.results


def test_an_ended_feed_without_frames_is_over(recorder: Recorder) -> None:
    assert started(recorder, 0).over
