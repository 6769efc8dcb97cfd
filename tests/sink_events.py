"""Frames, results and events for tests of outputs."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np

from gemel.frames.frame import Frame, Image
from gemel.runtime.decode.results import Detection, Result
from gemel.runtime.sinks.events import SinkEvent
from gemel.runtime.sinks.run_info import RunInfo

QUERIES = {"people": "yard", "scene": "yard", "faces": "gate"}
BOX = (40.0, 60.0, 120.0, 140.0)
PEOPLE = (Detection(BOX, 0.87, "person"),)
INFO = RunInfo("20261127T222214Z-0a1b2c3d")
NOON = 1795780800.0
"""Unix seconds of 2026-11-27 12:00 UTC."""


def frame(index: int, *, feed: str = "yard", size: tuple[int, int] = (180, 240), time: float | None = None) -> Frame:
    """Return a grey frame of a feed of ten frames per second."""
    image = np.full((*size, 3), 100, np.uint8)
    image.flags.writeable = False
    moment = index / 10 if time is None else time
    return Frame(feed, index, image, moment, 0.0, at=NOON + moment)


def event(index: int, result: Result = PEOPLE, *, query: str = "people", **changes: object) -> SinkEvent:
    """Return the event of a result."""
    return SinkEvent("result", INFO, frame(index, **changes), query, result, 12.34567)  # type: ignore[arg-type]


def decoded(path: Path) -> list[tuple[float, Image]]:
    """Return times and pictures of a video."""
    with av.open(str(path)) as container:
        return [(float(item.time or 0), item.to_ndarray(format="bgr24")) for item in container.decode(video=0)]


def wait_until(holds: Callable[[], bool], what: str) -> None:
    """Wait until a condition holds; fail if it does not in 30 seconds."""
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end, what
        time.sleep(0.01)
