"""Kill gemel with SIGKILL at random moments, and count what was lost.

    .venv/bin/python tools/kill_test.py --kills 50

Of the kills, three in five hit a run that writes results, videos and a summary, one a run that prepares the bundle
for the device, and one the compiler. After each kill the bundle must open, earlier results must still be there, and the
next start must remove what the killed process left behind. Exit status 1 if more was lost than is allowed: results of
one second, and video of one segment of ten seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import yaml
from small_bundle import make_small_bundle, write_workload

from gemel.bundles.reader import open_bundle

_BIN = Path(sys.executable).parent
_SEGMENT_S = 10
"""Seconds of video in one file of a killed run."""
_FPS = 10
"""Frames per second of every feed."""
_MOST_RESULTS_S, _MOST_VIDEO_S = 1.0, float(_SEGMENT_S)
"""Maximum seconds of results, and of video, that a kill may lose."""
_READY_S = 300.0
"""Maximum seconds that a process which is not killed may take."""


@dataclass
class Losses:
    """Figures of what kills did: their number, and results and video that were lost."""

    kills: Counter[str] = field(default_factory=Counter)
    """Phase in which the process was killed -> number of kills in that phase."""
    results_s: list[float] = field(default_factory=list)
    """Seconds between the newest result in the file and the kill, for each kill of a run that had answered."""
    video_s: list[float] = field(default_factory=list)
    """Seconds of video that are missing in the files, for each feed of each killed run that had answered."""
    broken: list[str] = field(default_factory=list)
    """Descriptions of damage that no kill may cause, such as a bundle that does not open."""


class Killer:
    """Starter of gemel processes in one folder, which kills each at a random moment and checks what is left.

    Args:
        folder: folder for everything that the processes read and write.
        longest: maximum seconds that a run lives.
        losses: where losses are noted.
    """

    def __init__(self, folder: Path, longest: float, losses: Losses) -> None:
        self.folder, self._longest, self._losses = folder, longest, losses
        self.bundle = make_small_bundle(folder / "run")
        self._workload = write_workload(folder / "compile")
        self._compiled = folder / "compile" / "bundle"
        self._results = folder / "results.jsonl"
        self._lines = 0
        self._environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        for kind in ("CACHE", "STATE"):
            self._environment[f"XDG_{kind}_HOME"] = str(folder / kind.lower())
        self._compile_s = self._timed("gemel-compile", self._workload, "-o", self._compiled)
        self._bake_s = self._timed("gemel-run", self.bundle, "--offline", "--frames", "1")

    def kill_run(self, number: int) -> None:
        """Kill a run that writes results, videos and a summary."""
        videos, summary = self.folder / f"videos-{number}", self.folder / "summary.json"
        outputs = self.folder / "outputs.yaml"
        jsonl = {"jsonl": {"path": str(self._results)}}
        video = {"video": {"folder": str(videos), "segment": f"{_SEGMENT_S}s"}}
        outputs.write_text(yaml.safe_dump({"outputs": [jsonl, video]}))
        summary.unlink(missing_ok=True)
        self._killed(
            random.uniform(0, self._longest), "gemel-run", self.bundle, "--outputs", outputs, "--json", summary
        )
        ended = time.time()
        rows = self._rows()
        own = rows[self._lines :]
        self._lines = len(rows)
        self._losses.kills["answering" if own else "starting"] += 1
        if own:
            self._losses.results_s.append(ended - max(row["at"] for row in own))
            for feed in {row["feed"] for row in own}:
                answered = len({row["frame"] for row in own if row["feed"] == feed})
                self._losses.video_s.append(max(0, answered - _frames(videos, feed)) / _FPS)
        if summary.exists():
            self._whole(summary)
        self._after()

    def kill_bake(self) -> None:
        """Kill a run that prepares the bundle for the device."""
        for cache in (self.bundle / "device-cache").iterdir():
            if not cache.name.startswith("."):
                shutil.rmtree(cache)
        self._killed(random.uniform(0, self._bake_s), "gemel-run", self.bundle, "--offline", "--frames", "1")
        self._losses.kills["preparing"] += 1
        self._after()

    def kill_compile(self) -> None:
        """Kill a compiler that replaces a bundle, and check that there is a bundle afterwards."""
        self._killed(random.uniform(0, self._compile_s), "gemel-compile", self._workload, "-o", self._compiled)
        self._losses.kills["compiling"] += 1
        self._opens(self._compiled)
        self._run("gemel-compile", self._workload, "-o", self._compiled)
        self._clean(self._compiled.parent)

    def _after(self) -> None:
        """Check that the bundle opens and runs after a kill, and that no temporary file or folder is left."""
        self._opens(self.bundle)
        self._run("gemel-run", self.bundle, "--offline", "--frames", "1", "--json", self.folder / "summary.json")
        self._clean(self.folder)

    def _timed(self, *command: str | Path) -> float:
        began = time.monotonic()
        self._run(*command)
        return time.monotonic() - began

    def _run(self, *command: str | Path) -> None:
        program, *rest = map(str, command)
        done = subprocess.run(
            [_BIN / program, *rest], capture_output=True, text=True, env=self._environment, timeout=_READY_S
        )
        if done.returncode:
            self._losses.broken.append(f"{program}: exit status {done.returncode}: {done.stderr[-300:]}")

    def _killed(self, seconds: float, *command: str | Path) -> None:
        """Start a process, and kill it after some seconds with SIGKILL."""
        program, *rest = map(str, command)
        process = subprocess.Popen(
            [_BIN / program, *rest], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=self._environment
        )
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def _rows(self) -> list[dict[str, Any]]:
        """Return the lines of the results file; note lines that are missing or damaged."""
        text = self._results.read_text() if self._results.exists() else ""
        rows: list[dict[str, Any]] = []
        for line in text.split("\n")[:-1]:
            row = _parsed(line)
            if row is None:
                self._losses.broken.append(f"a damaged line of results: {line[:100]!r}")
            else:
                rows.append(row)
        if len(rows) < self._lines:
            self._losses.broken.append(f"{self._lines - len(rows)} earlier results are gone")
        return rows

    def _whole(self, path: Path) -> None:
        if _parsed(path.read_text()) is None:
            self._losses.broken.append(f"{path.name} is damaged")

    def _opens(self, bundle: Path) -> None:
        try:
            open_bundle(bundle)
        except Exception as error:
            self._losses.broken.append(f"after a kill: {error}")

    def _clean(self, folder: Path) -> None:
        left = [str(path.relative_to(folder)) for path in folder.rglob(".*")]
        if left:
            self._losses.broken.append(f"left behind: {', '.join(left)}")


def _frames(folder: Path, feed: str) -> int:
    """Return the number of frames that the video files of a feed hold."""
    return sum(_playable(path) for path in folder.glob(f"{feed}*.mp4"))


def _playable(path: Path) -> int:
    """Return the number of frames that can be decoded from a video file, up to the first error."""
    count = 0
    with contextlib.suppress(av.FFmpegError, IndexError), av.open(str(path)) as container:
        for _ in container.decode(video=0):
            count += 1
    return count


def _parsed(text: str) -> dict[str, Any] | None:
    """Return the JSON object in a text; None if the text is not a JSON object."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def main() -> int:
    """Kill gemel, print what was lost, and return the exit status."""
    parser = argparse.ArgumentParser(description="Kill gemel at random moments and count what was lost.")
    parser.add_argument("--kills", type=int, default=50, help="number of kills")
    parser.add_argument("--longest", type=float, default=20.0, help="maximum seconds that a run lives")
    parser.add_argument("--seed", type=int, default=0, help="other seeds kill at other moments")
    options = parser.parse_args()
    random.seed(options.seed)
    losses = Losses()
    with tempfile.TemporaryDirectory(prefix="gemel-kill-") as name:
        killer = Killer(Path(name), options.longest, losses)
        for number in range(options.kills):
            kind = number % 5
            if kind < 3:
                killer.kill_run(number)
            elif kind == 3:
                killer.kill_bake()
            else:
                killer.kill_compile()
    print(f"kills: {', '.join(f'{count} while {phase}' for phase, count in losses.kills.items())}")
    worst = {"results": (losses.results_s, _MOST_RESULTS_S), "video": (losses.video_s, _MOST_VIDEO_S)}
    for what, (seconds, most) in worst.items():
        if seconds:
            print(f"{what} lost: at most {max(seconds):.2f} s, {sum(seconds) / len(seconds):.2f} s on average")
        if any(each > most for each in seconds):
            losses.broken.append(f"more than {most:g} s of {what} were lost")
    for each in losses.broken:
        print(f"BROKEN: {each}")
    print("every bundle and cache could be used; nothing was left behind" if not losses.broken else "failed")
    return 1 if losses.broken else 0


if __name__ == "__main__":
    sys.exit(main())
