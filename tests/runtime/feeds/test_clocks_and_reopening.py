"""Feeds when the wall clock jumps, and when a source is opened again hundreds of times."""

from __future__ import annotations

import time
from itertools import count, pairwise
from pathlib import Path
from threading import Condition

import numpy as np
import pytest
from cameras import HttpCamera, Sending, jpeg
from helpers import write_video
from scripted import Script
from take_frames import LONG_S, drain

from gemel.frames.source import resolve
from gemel.runtime.feeds import Backoff, Feed

AT_ONCE = Backoff(first=1e-4, limit=1e-4)


@pytest.mark.parametrize("jump", [86400.0, -86400.0])
def test_a_wall_clock_that_is_set(jump: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only ``at`` is a time of the wall clock. Pace, media time and latency do not follow it."""
    calls = count()
    monkeypatch.setattr("gemel.runtime.feeds.feed.time", lambda: time.time() + (jump if next(calls) >= 40 else 0))
    began = time.time()
    frames = drain(Feed("yard", Script(50)), live=False)
    assert len(frames) == 50
    assert all(a.time < b.time and a.arrived <= b.arrived for a, b in pairwise(frames))
    assert frames[0].at == pytest.approx(began, abs=LONG_S)
    assert frames[-1].at == pytest.approx(began + jump, abs=LONG_S)


def resources() -> tuple[int, int]:
    """Return the number of this process's open files and of its threads."""
    return tuple(len(list(Path(f"/proc/self/{kind}").iterdir())) for kind in ("fd", "task"))  # type: ignore[return-value]


def settled(before: tuple[int, int]) -> None:
    """Check that no more files and threads are open than before; a thread that was joined may take a moment to end."""
    end = time.monotonic() + LONG_S
    while (now := resources()) and (now[0] > before[0] or now[1] > before[1]):
        assert time.monotonic() < end, (before, now)
        time.sleep(0.01)


def test_a_recording_that_is_opened_300_times(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "a.mkv", 60).read_bytes()
    (tmp_path / "a.mkv").write_bytes(whole[: len(whole) // 2])
    path = str(tmp_path / "a.mkv")
    drain(Feed("yard", resolve("yard", path), loop=True, backoff=AT_ONCE), limit=50)
    before = resources()
    feed = Feed("yard", resolve("yard", path), loop=True, backoff=AT_ONCE)
    while_it_runs = []
    wake = Condition()
    feed.start(wake, live=False)
    end = time.monotonic() + LONG_S
    while feed.counts.restarts < 300:
        assert time.monotonic() < end
        if feed.take() is None:
            with wake:
                wake.wait(0.01)
        elif feed.counts.restarts % 50 == 49:
            while_it_runs.append(resources())
    feed.stop()
    feed.join(LONG_S)
    assert np.max(while_it_runs, axis=0).tolist() <= [before[0] + 4, before[1] + 4]
    settled(before)


def test_a_camera_that_is_opened_100_times() -> None:
    with HttpCamera([jpeg()], Sending(fps=1000, most=1)) as camera:
        drain(Feed("gate", resolve("gate", f"{camera.url}/mjpeg"), backoff=AT_ONCE), limit=3)
        before = resources()
        feed = Feed("gate", resolve("gate", f"{camera.url}/mjpeg"), backoff=AT_ONCE)
        assert len(drain(feed, limit=100)) == 100
        assert feed.counts.restarts >= 99
        # The camera's own threads end after the client's.
        settled(before)
