"""Measure what reading cameras costs: processor time per second of a feed, with 20 feeds that are read at once.

    .venv/bin/python tools/bench_feeds.py [--feeds 20] [--seconds 20] [--json feeds.json]

Small H.264 recordings are made and played as cameras are: in real time, on a thread per feed. No model runs. A row
states the processor time of reading, decoding and converting one second of one feed, how many cores all feeds need at
once, the threads of the process, and the fraction of the expected frames that were delivered, which is less than 1 if
the machine has too few free cores. The script uses only names that older versions of gemel have too, so that it can
also measure those.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from threading import Condition
from typing import Any

import av
import numpy as np

from gemel.frames.source import resolve
from gemel.runtime.feeds import Feed

_RATE = 15
"""Pictures per second of the recordings, a rate that many cameras have."""
_SIZES = ((640, 360), (1280, 720), (1920, 1080))
_KEPT = (None, 5.0, 1.0)
"""Values of the feeds' ``fps`` to measure: frames per second that are converted; None for all."""


def write_recording(path: Path, size: tuple[int, int], seconds: int, seed: int) -> None:
    """Write an H.264 recording of a moving texture, with a key frame every two seconds and no B-frames."""
    width, height = size
    generator = np.random.default_rng(seed)
    blocks = generator.integers(0, 256, (height // 8, width // 8, 3)).astype(np.uint8)
    texture = np.kron(blocks, np.ones((8, 8, 1), np.uint8))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=_RATE, options={"preset": "veryfast", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = width, height, "yuv420p", 2 * _RATE
        for i in range(seconds * _RATE):
            image = np.ascontiguousarray(np.roll(texture, (i, 2 * i), (0, 1)))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
        container.mux(stream.encode(None))


def measure(paths: list[Path], fps: float | None, seconds: float) -> dict[str, Any]:
    """Play recordings as cameras for some seconds, and return the processor time, threads and delivered frames."""
    feeds = [Feed(path.stem, resolve(path.stem, str(path), fps=fps), fps=fps, loop=True) for path in paths]
    wake = Condition()
    for feed in feeds:
        feed.start(wake, live=True)
    # Opening is not measured: cameras stay open.
    time.sleep(2)
    before, cpu, began = [feed.delivered for feed in feeds], _cpu(), time.monotonic()
    threads = 0
    while time.monotonic() < began + seconds:
        with wake:
            wake.wait(0.1)
        for feed in feeds:
            feed.take()
        threads = max(threads, len(list(Path("/proc/self/task").iterdir())))
    passed = time.monotonic() - began
    used = _cpu() - cpu
    delivered = sum(feed.delivered - known for feed, known in zip(feeds, before, strict=True))
    for feed in feeds:
        feed.stop()
    for feed in feeds:
        feed.join(10)
    shown = delivered / min(fps or _RATE, _RATE)
    return {
        "fps": fps,
        "cpu_s_per_feed_s": round(used / shown, 5),
        "cores": round(used / shown * len(feeds), 2),
        "threads": threads,
        "delivered": round(shown / passed / len(feeds), 3),
    }


def _cpu() -> float:
    times = os.times()
    return times.user + times.system


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--feeds", type=int, default=20, help="feeds that are read at once")
    parser.add_argument("--seconds", type=float, default=20, help="seconds of each measurement")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size in _SIZES:
            paths = [Path(folder, f"{size[1]}-{number}.mp4") for number in range(options.feeds)]
            # Four different recordings: the others are links to them.
            for number, path in enumerate(paths):
                if number < 4:
                    write_recording(path, size, 10, number)
                else:
                    path.symlink_to(paths[number % 4])
            for fps in _KEPT:
                row = {"size": f"{size[0]}x{size[1]}", **measure(paths, fps, options.seconds)}
                rows.append(row)
                print(json.dumps(row), flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps({"cores": len(os.sched_getaffinity(0)), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
