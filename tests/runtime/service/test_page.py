"""The live page in a real browser, on a desk and on a phone in dark mode: tables, arena and pictures are there."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from gemel.frames.frame import Frame
from gemel.runtime.decode.results import Detection
from gemel.runtime.loop.summary import FeedStats, Latency, MemoryUse, PlanStats, QueryStats, RunStats, Summary
from gemel.runtime.planning.promises import Promise
from gemel.runtime.service.latest_frames import LatestFrames
from gemel.runtime.service.status import RunStatus, SegmentStatus

pytest.importorskip("prometheus_client", reason="needs prometheus-client (the extra service)")
from gemel.runtime.service.metrics import RunMetrics
from gemel.runtime.service.server import StatusServer

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs chromium (Debian's package)")
GREEN = (0, 200, 0)
"""Colour of the frames, BGR."""


def serve(feeds: int) -> Iterator[str]:
    """Serve the page of a run with some feeds, and yield its URL."""
    names = [f"gate {number}" for number in range(feeds)]
    queries = {f"<b>{name}": QueryStats(name, 10, 7, latency=Latency(1.0, 2.0, 3.0)) for name in names}
    stats = RunStats(5.0, queries, {name: FeedStats(10, state="running") for name in names})
    promised = {query: Promise(7.25, 10.0, 8.0, 0.9) for query in queries}
    stats = replace(stats, plan=PlanStats(tuple(queries), dict.fromkeys(queries, 1), 0, promised))
    status = RunStatus(
        "0.1",
        lambda: Path("bundle"),
        lambda: [SegmentStatus("s0", 6_000_000, ("a", "b"), True), SegmentStatus("s1", 3_000_000, ("a",), False)],
        details=lambda: {"reloads": {"done": 0, "failed": 1, "last": {"bundle": "new", "error": "it is damaged"}}},
    )
    status.begin(lambda: Summary(stats, "ort-cpu", MemoryUse(9_000_000, 6_000_000)))
    frames = LatestFrames({query: each.feed for query, each in queries.items()})
    server = StatusServer(status, RunMetrics(status), frames)
    now = time.monotonic()
    image = np.full((480, 640, 3), GREEN, np.uint8)
    for query, each in queries.items():
        box = Detection((100.0, 100.0, 300.0, 300.0), 0.9, "car")
        frames.on_frame(Frame(each.feed, 0, image, 0.0, now), {query: (box,)})
    yield server.url
    frames.close()
    server.close()


@pytest.fixture(params=[1, 7], ids=["1 feed", "7 feeds"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    yield from serve(request.param)


def browse(url: str, folder: Path, *flags: str) -> str:
    assert BROWSER is not None
    # A profile of its own: a browser that runs already would take the call over.
    usual = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={folder}")
    done = subprocess.run(
        [BROWSER, *usual, "--virtual-time-budget=5000", *flags, url], capture_output=True, text=True, timeout=120
    )
    return done.stdout


def test_the_page_shows_the_run(url: str, tmp_path: Path) -> None:
    page = browse(url, tmp_path, "--dump-dom")
    feeds = page.count("<figure")
    assert feeds in (1, 7)
    assert re.search(r'<span id="state" class="good">running', page)
    assert page.count("&lt;b&gt;gate") == feeds  # names are text, not markup
    assert "6.0 MB of 9.0 MB" in page and "6.0 MB: a, b" in page and "3.0 MB: a (not in memory)" in page
    assert "last reload failed: it is damaged" in page
    title = "of 10.0 frames per second; at least 8 were asked for; expected accuracy 90.0 %"
    assert page.count(f'<td class="bad" title="{title}">7.3</td>') + page.count(f'title="{title}">7.2</td>') == feeds


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (390, True)], ids=["desk", "dark phone"])
def test_pictures_and_colours(url: str, tmp_path: Path, width: int, dark: bool) -> None:
    shot = tmp_path / "page.png"
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    browse(url, tmp_path / "profile", f"--window-size={width},3600", *scheme, f"--screenshot={shot}")
    image = cv2.imread(str(shot))
    assert image is not None and image.shape[1] >= width
    # The corner is background; a page that is too wide for a phone would put the picture out of sight.
    assert (image[3, 3].mean() < 60) == dark
    green = np.abs(image[:, :width].astype(int) - GREEN).max(2) < 40
    assert green.sum() > 0.03 * width * width
