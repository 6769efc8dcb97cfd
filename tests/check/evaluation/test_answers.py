"""The answer that stands for each frame."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemel.check.evaluation.answers import Answer, Recorder, arrivals, standing
from gemel.frames.frame import Frame
from gemel.runtime.decode.results import Class, Raw


def answer(frame: int, done: float, arrived: float | None = None) -> Answer:
    """Return an answer to a frame of a feed with 10 frames per second that began at second 100."""
    time = frame / 10
    return Answer(frame, time, 100 + time if arrived is None else arrived, done, (Class(str(frame), 1.0),))


def labels(given: list[Answer], frames: list[int], deadlines: list[float]) -> list[int | None]:
    found = standing(given, frames, np.array(deadlines))
    return [int(each[0].label) if isinstance(each, tuple) else None for each in found]


def test_an_answer_stands_until_the_next_one() -> None:
    given = [answer(1, 100.15), answer(3, 100.35)]
    deadlines = [100.1, 100.2, 100.3, 100.4, 100.5]
    assert labels(given, [0, 1, 2, 3, 4], deadlines) == [None, 1, 1, 3, 3]


def test_an_answer_that_is_late_counts_from_then_on() -> None:
    # Frame 0 is answered after its own deadline, and frame 2 after the deadline of frame 3.
    given = [answer(0, 100.15), answer(2, 100.45)]
    assert labels(given, [0, 1, 2, 3, 4], [100.1, 100.2, 100.3, 100.4, 100.5]) == [None, 0, 0, 0, 2]


def test_an_answer_to_a_later_frame_is_no_answer() -> None:
    # With a long SLA, frame 1 is answered before the answer to frame 0 is due.
    assert labels([answer(1, 100.2)], [0, 1], [105, 105.1]) == [None, 1]


def test_no_answers() -> None:
    assert labels([], [0, 1], [1, 2]) == [None, None]
    assert labels([answer(0, 100)], [], []) == []


@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 6)), max_size=8),
    st.integers(0, 12),
    st.integers(0, 8),
)
def test_the_newest_that_was_there_in_time(steps: list[tuple[int, int]], count: int, sla: int) -> None:
    given, frame, done = [], -1, 0
    for frames, time in steps:
        frame, done = frame + frames, max(done, frame + frames) + time
        given.append(answer(frame, done))
    deadlines = [float(each + sla) for each in range(count)]
    expected = [
        max((a.frame for a in given if a.frame <= each and a.done <= due), default=None)
        for each, due in enumerate(deadlines)
    ]
    assert labels(given, list(range(count)), deadlines) == expected


def test_arrivals_of_frames_that_nobody_saw() -> None:
    times = [0.0, 0.1, 0.2, 0.3, 0.4]
    # Frame 1 came 10 ms late; the feed stalled for a second between frames 2 and 4.
    known = [answer(4, 0, arrived=101.4), answer(1, 0, arrived=100.11), answer(2, 0)]
    assert arrivals(times, known) == pytest.approx([100.01, 100.11, 100.2, 100.8, 101.4])
    assert arrivals(times, [answer(2, 0)]) == pytest.approx([100 + time for time in times])
    assert arrivals(times, []) == pytest.approx(times)


def test_the_recorder_keeps_no_picture() -> None:
    recorder = Recorder()
    frame = Frame("yard", 7, np.zeros((2, 3, 3), np.uint8), 0.7, 100.0)
    recorder.on_result("q", frame, (), 250.0)
    assert dict(recorder.answers) == {"q": [Answer(7, 0.7, 100.0, 100.25, ())]}


def test_the_recorder_keeps_part_of_large_outputs() -> None:
    recorder = Recorder()
    frame = Frame("yard", 7, np.zeros((2, 3, 3), np.uint8), 0.7, 100.0)
    large = np.arange(100_000, dtype=np.float32).reshape(1, 100, 1000)
    recorder.on_result("q", frame, Raw({"large": large, "small": large[0, :2, :2]}), 250.0)
    kept = recorder.answers["q"][0].result
    assert isinstance(kept, Raw)
    assert kept.outputs["small"].tolist() == [0, 1, 1000, 1001]
    values = kept.outputs["large"]
    assert len(values) == 4096
    assert (values[0], values[-1]) == (0, 99_999)
    assert set(np.diff(values).tolist()) == {24, 25}
