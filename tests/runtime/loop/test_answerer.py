"""Outcomes of a turn's pairs are reported in order, and a turn ends early where nobody wants its frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from scripted import Recorder, answer, feed, one_by_one

from gemel.frames.frame import Frame
from gemel.runtime.decode.results import Result
from gemel.runtime.loop.answerer import Answerer, Infer
from gemel.runtime.loop.channel import Channel, QueryState
from gemel.runtime.trace import Trace

Pairs = Sequence[tuple[str, Frame]]


def frame(index: int) -> Frame:
    return Frame("yard", index, np.zeros((2, 3, 3), np.uint8), 0.0, 0.0)


def refusing(*refused: int) -> Infer:
    """Return a function that fails on frames of some indices."""

    def run(query: str, frame: Frame) -> Result:
        if frame.index in refused:
            raise ValueError(f"no {frame.index}")
        return answer(query, frame)

    return one_by_one(run)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def states() -> dict[str, QueryState]:
    channel = Channel(feed("yard", 0))
    return {name: QueryState(name, channel) for name in "ab"}


def turn(states: dict[str, QueryState], pairs: str) -> list[tuple[QueryState, Frame]]:
    """Return the pairs of a turn, of which ``pairs`` names the queries; frames are numbered from 0."""
    return [(states[name], frame(index)) for index, name in enumerate(pairs)]


def test_outcomes_are_told_in_order(states: dict[str, QueryState], recorder: Recorder) -> None:
    trace = Trace()
    assert Answerer(refusing(1), [recorder], trace).answer(turn(states, "abab"))
    assert [(query, index) for query, index, _ in recorder.results] == [("a", 0), ("a", 2), ("b", 3)]
    assert all(result == answer(query, frame(index)) for query, index, result in recorder.results)
    assert recorder.errors == [("b", 1, "ValueError: no 1")]
    assert len(trace._spans) == 3
    assert (states["a"].counters.processed, states["a"].counters.errors) == (2, 0)
    assert (states["b"].counters.processed, states["b"].counters.errors) == (1, 1)


def test_a_query_that_is_given_up_takes_no_more_frames_of_the_turn(
    states: dict[str, QueryState], recorder: Recorder
) -> None:
    asked = []

    def run(query: str, frame: Frame) -> Result:
        asked.append(frame.index)
        raise ValueError("no")

    assert not Answerer(one_by_one(run), [recorder], max_failures=2).answer(turn(states, "aaaa"))
    # Nothing ran for the frames that were left.
    assert asked == [0, 1]
    assert states["a"].gave_up and states["a"].counters.errors == 2


def test_others_go_on_where_a_query_of_the_turn_is_given_up(states: dict[str, QueryState], recorder: Recorder) -> None:
    answerer = Answerer(refusing(0), [recorder], max_failures=1)
    assert not answerer.answer(turn(states, "aabab"))
    assert recorder.errors == [("a", 0, "ValueError: no 0")]
    assert [(query, index) for query, index, _ in recorder.results] == [("b", 2), ("b", 4)]


def test_a_query_that_is_paused_while_its_frame_runs_answers_that_frame(
    states: dict[str, QueryState], recorder: Recorder
) -> None:
    def run(query: str, frame: Frame) -> Result:
        states["a"].pause(True)
        return answer(query, frame)

    assert not Answerer(one_by_one(run), [recorder]).answer(turn(states, "aba"))
    assert [(query, index) for query, index, _ in recorder.results] == [("a", 0), ("b", 1)]


def test_a_turn_that_is_stopped_runs_no_more_frames(states: dict[str, QueryState], recorder: Recorder) -> None:
    assert not Answerer(one_by_one(), [recorder]).answer(turn(states, "aaa"), lambda: len(recorder.results) == 2)
    assert recorder.indices("a") == [0, 1]
    assert not Answerer(one_by_one(), [recorder]).answer(turn(states, "a"), lambda: True)
    assert recorder.indices("a") == [0, 1]


def test_an_exception_of_the_whole_call_is_everybodys(states: dict[str, QueryState], recorder: Recorder) -> None:
    def broken(pairs: Pairs) -> list[Result | Exception]:
        raise KeyError("model")

    assert Answerer(broken, [recorder]).answer(turn(states, "ab"))
    assert recorder.errors == [("a", 0, "KeyError: 'model'"), ("b", 1, "KeyError: 'model'")]


def test_an_exception_between_two_outcomes_is_everybodys_who_is_left(
    states: dict[str, QueryState], recorder: Recorder
) -> None:
    def broken(pairs: Pairs) -> Iterator[Result | Exception]:
        yield answer(*pairs[0])
        raise KeyError("model")

    assert Answerer(broken, [recorder]).answer(turn(states, "aaa"))
    assert recorder.indices("a") == [0] and [index for _, index, _ in recorder.errors] == [1, 2]


def test_a_list_of_outcomes_will_do(states: dict[str, QueryState], recorder: Recorder) -> None:
    assert Answerer(lambda pairs: [answer(*pair) for pair in pairs], [recorder]).answer(turn(states, "ab"))
    assert len(recorder.results) == 2
