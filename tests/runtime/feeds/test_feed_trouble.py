"""Feeds in trouble: pictures that cannot be converted, jumps of time stamps, folders that are empty for a while."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Condition
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import Script

from gemel.errors import FeedError
from gemel.frames.frame import Frame, Image
from gemel.frames.reader import Picture, SilentError
from gemel.frames.source import resolve
from gemel.runtime.feeds import Backoff, Feed
from gemel.runtime.feeds.feed_state import FeedState
from gemel.runtime.feeds.pacing import Patience, Timeline
from gemel.runtime.loop.summary import FeedStats

LONG_S = 30.0
SOON = Backoff(first=0.005, limit=0.01)


class Scripted(Script):
    """A source whose pictures a function makes."""

    def __init__(self, make: Callable[[int], Picture], most: int, **script: Any) -> None:
        super().__init__(most, **script)
        self._make = make

    def __iter__(self) -> Iterator[Picture]:
        for i in range(self._most):
            yield self._make(i)
        if self._failure is not None:
            raise self._failure


def grey() -> Image:
    return np.zeros((2, 3, 3), np.uint8)


def drain(feed: Feed, *, live: bool = False, limit: int | None = None) -> list[Frame]:
    wake, frames, end = Condition(), [], time.monotonic() + LONG_S
    feed.start(wake, live=live, limit=limit)
    while not feed.finished:
        assert time.monotonic() < end
        frame = feed.take()
        if frame is None:
            with wake:
                wake.wait(0.005)
        else:
            frames.append(frame)
    feed.join(LONG_S)
    return frames


@pytest.mark.parametrize("error", [MemoryError(), cv2.error("no\nway"), ValueError("bad picture")])
def test_a_picture_that_cannot_be_converted_is_one_picture(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    def make(i: int) -> Picture:
        def fail() -> Image:
            raise error

        return i / 100, fail if i in (3, 4) else grey

    feed = Feed("yard", Scripted(make, 10))
    frames = drain(feed)
    assert [frame.index for frame in frames] == list(range(8))
    stats = FeedStats.of(feed)
    assert (stats.corrupt, stats.error, stats.state, stats.captured) == (2, None, "ended", 10)
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith("feed yard: a picture cannot be converted: ")
    assert "\n" not in line


class TestJumps:
    def test_a_live_recording_goes_on_after_a_gap(self) -> None:
        """A recorder joined two files: the second begins an hour later."""

        def make(i: int) -> Picture:
            return i / 100 + (3600 if i >= 10 else 0), grey

        feed = Feed("yard", Scripted(make, 20), fps=None)
        frames = drain(feed, live=True)
        assert feed.delivered == 20
        assert frames[-1].time == pytest.approx(0.19, abs=0.02)

    def test_one_stamp_that_is_wrong(self) -> None:
        timeline = Timeline()
        timeline.begin(period=0.1)
        found = [timeline(stamp) for stamp in (0, 0.1, 0.2, 5000.3, 0.4, 0.5)]
        assert found == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])

    def test_stamps_that_are_a_little_out_of_order(self) -> None:
        timeline = Timeline()
        timeline.begin(period=0.1)
        found = [timeline(stamp) for stamp in (0, 0.1, 0.2, 0.15, 0.3, 0.4)]
        assert found == pytest.approx([0, 0.1, 0.2, 0.201, 0.3, 0.4])

    def test_a_recording_of_a_picture_every_ten_seconds(self) -> None:
        timeline = Timeline()
        timeline.begin(period=10.0)
        assert [timeline(stamp) for stamp in (0.0, 10.0, 22.0)] == [0, 10, 22]

    def test_a_camera_of_a_picture_every_ten_seconds(self) -> None:
        timeline = Timeline()
        timeline.begin(period=0.04)
        assert [timeline(i * 10.0, 100 + i * 10.1) for i in range(4)] == [0, 10, 20, 30]

    def test_a_stream_jumps_by_the_time_that_went_by(self) -> None:
        timeline = Timeline()
        timeline.begin(period=0.1)
        found = [timeline(stamp, clock) for stamp, clock in ((7, 50), (7.1, 50.1), (0, 62.1), (0.1, 62.2))]
        assert found == pytest.approx([0, 0.1, 12.1, 12.2])

    @given(st.lists(st.tuples(st.floats(-1e5, 1e5), st.floats(0, 100)), max_size=30))
    def test_times_grow_with_any_stamps_and_clock(self, steps: list[tuple[float, float]]) -> None:
        timeline, clock, last = Timeline(), 0.0, -1.0
        timeline.begin(period=0.1)
        for stamp, passed in steps:
            clock += passed
            found = timeline(stamp, clock)
            assert found > last
            last = found


class TestFolders:
    def write(self, path: Path) -> None:
        cv2.imwrite(str(path), np.zeros((8, 8, 3), np.uint8))

    def test_a_looped_folder_that_is_empty_for_a_moment(self, tmp_path: Path) -> None:
        self.write(tmp_path / "a.png")
        source = resolve("yard", str(tmp_path), fps=50)
        feed = Feed("yard", source, fps=50, loop=True, backoff=SOON)
        wake, end = Condition(), time.monotonic() + LONG_S
        feed.start(wake, live=True)

        def wait(enough: Callable[[], bool]) -> None:
            while not enough():
                assert time.monotonic() < end
                time.sleep(0.005)

        wait(lambda: feed.delivered >= 2)
        (tmp_path / "a.png").unlink()
        wait(lambda: feed.counts.restarts >= 3)
        assert (feed.state, feed.error) == ("reconnecting", "there is no readable frame in it")
        before = feed.delivered
        self.write(tmp_path / "b.png")
        wait(lambda: feed.delivered > before)
        assert feed.state == "running"
        feed.stop()
        feed.join(LONG_S)

    def test_a_folder_that_never_had_an_image_ends(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_bytes(b"x")
        feed = Feed("yard", resolve("yard", str(tmp_path)), loop=True, backoff=SOON)
        assert drain(feed) == []
        assert feed.state == "failed"


class TestState:
    def test_a_recording_that_is_cut_off_failed(self) -> None:
        feed = Feed("yard", Scripted(lambda i: (i / 100, grey), 5, failure=FeedError("ends after 1 s of 2 s")))
        assert len(drain(feed)) == 5
        assert (feed.state, feed.error) == ("failed", "ends after 1 s of 2 s")

    def test_a_device_that_is_missing_is_tried_again(self, caplog: pytest.LogCaptureFixture) -> None:
        source = resolve("line", "/dev/video987")
        assert source.live
        feed = Feed("line", source, backoff=SOON)
        feed.start(Condition())
        end = time.monotonic() + LONG_S
        while feed.counts.restarts < 3:
            assert time.monotonic() < end
            time.sleep(0.005)
        feed.stop()
        feed.join(LONG_S)
        assert feed.state == "reconnecting"
        # One line, though it was tried three times.
        assert [record.getMessage() for record in caplog.records] == [
            "feed line: cannot open /dev/video987: No such file or directory; trying again in 0.0 s"
        ]

    def test_a_reason_is_said_once_until_it_changes(self, caplog: pytest.LogCaptureFixture) -> None:
        state = FeedState("gate")
        for reason in ("refused", "refused", "timed out", "refused"):
            state.restart(reason, 1.0)
        state.deliver(0.01, 0)
        state.restart("refused", 1.0)
        said = [record.getMessage().partition(";")[0] for record in caplog.records]
        assert said[:2] == ["feed gate: refused", "feed gate: timed out"]
        assert said[2].startswith("feed gate: pictures again after")
        assert said[3:] == ["feed gate: refused"]

    def test_a_silent_camera_gets_more_time(self) -> None:
        patience: list[float] = []

        class Silent(Scripted):
            def open(self, factor: float = 1.0) -> Script:
                patience.append(factor)
                return self

        source = Silent(lambda i: (float(i), grey), 1, live=True, failure=SilentError("no picture for 5 s"))
        feed = Feed("gate", source, backoff=SOON)
        feed.start(Condition())
        end = time.monotonic() + LONG_S
        while len(patience) < 7:
            assert time.monotonic() < end
            time.sleep(0.005)
        feed.stop()
        feed.join(LONG_S)
        assert patience[:7] == [1, 2, 4, 8, 16, 16, 16]

    def test_patience(self) -> None:
        patience = Patience()
        for pictures, factor in ((0, 2), (0, 2), (5, 4), (0, 4), (1000, 1)):
            patience.silent(pictures)
            assert patience.factor == factor
