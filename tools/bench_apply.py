"""Count the frames that queries miss while ``gemel apply --port`` exchanges the bundle of a run, beside calm stretches.

    .venv/bin/python tools/make_street_example.py
    .venv/bin/gemel-compile examples/street/workload.yaml -o out/street/unmerged
    .venv/bin/gemel-compile examples/street/merged/workload.yaml -o out/street/bundle
    .venv/bin/python tools/bench_apply.py out/street/unmerged out/street/bundle [--rounds 10] [--fps 10] [--memory all]

Copies of both bundles get the frame rate of ``--fps``, which one core must be able to answer. ``gemel-run`` answers on
one thread. In each round, nothing happens for a while; then a delta is applied, to the other bundle and back in turns.
No new bundle has a device cache, so each reload makes it. A stretch goes from the start of ``gemel apply`` to five
seconds after the reload; the calm one before it is as long. A frame is missed by a query that has no answer to it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from bench_reload import Box

from gemel.bundles.reader import CACHE, MANIFEST, open_bundle
from gemel.bundles.write_delta import write_delta

_AFTER_S = 5.0
"""Seconds after a reload that belong to its stretch."""
_LEAST_S = 15.0
"""Minimum seconds of a calm stretch; the end of it, as long as the following reload's, is looked at."""

Stretch = tuple[float, float]
"""Begin and end of a stretch of time in Unix seconds."""


def with_rate(bundle: Path, fps: float, output: Path) -> Path:
    """Write a copy of a bundle whose feeds have another frame rate, and return its folder."""
    shutil.copytree(bundle, output, ignore=shutil.ignore_patterns(CACHE))
    document = json.loads((output / MANIFEST).read_text())
    for feed in document["feeds"].values():
        feed["fps"] = fps
    (output / MANIFEST).write_text(json.dumps(document))
    return output


def apply(delta: Path, bundle: Path, port: int) -> None:
    """Apply a delta and have the run reload, as an operator does it."""
    program = Path(sys.executable).parent / "gemel"
    subprocess.run([program, "apply", delta, bundle, "--port", str(port)], check=True, stdout=subprocess.DEVNULL)


def missed(rows: list[dict[str, Any]], stretch: Stretch) -> dict[str, dict[str, float]]:
    """Return query -> frames that arrived in a stretch, those without an answer, and the longest gap between answers.

    Args:
        rows: lines of results of a whole run.
        stretch: begin and end in Unix seconds.
    """
    seen: dict[str, dict[int, float]] = defaultdict(dict)
    answered: dict[str, dict[int, float]] = defaultdict(dict)
    for row in rows:
        seen[row["query"]][row["frame"]] = row["at"]
        answered[row["query"]][row["frame"]] = row["at"] + row["latency_ms"] / 1e3
    found = {}
    for query, at in sorted(seen.items()):
        inside = [index for index, time_ in at.items() if stretch[0] <= time_ <= stretch[1]]
        # The nearest answers outside belong to it, so that a gap at the edge counts.
        low = max((index for index, time_ in at.items() if time_ < stretch[0]), default=min(at))
        high = min((index for index, time_ in at.items() if time_ > stretch[1]), default=max(at))
        times = [answered[query][index] for index in sorted({low, *inside, high})]
        frames = high - low - 1
        found[query] = {
            "frames": frames,
            "missed": frames - len(inside),
            "gap_s": round(max(later - earlier for earlier, later in pairwise(times)), 3),
        }
    return found


def total(stretches: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Return the sums of several stretches: frames, missed ones by query and in all, and the longest gap."""
    queries: dict[str, float] = defaultdict(float)
    for stretch in stretches:
        for query, each in stretch.items():
            queries[query] += each["missed"]
    everything = [each for stretch in stretches for each in stretch.values()]
    return {
        "frames": sum(each["frames"] for each in everything),
        "missed": sum(queries.values()),
        "queries": dict(queries),
        "gap_s": max(each["gap_s"] for each in everything),
        "median_longest_gap_s": round(median(max(e["gap_s"] for e in each.values()) for each in stretches), 3),
    }


def measure(old: Path, new: Path, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run the bundle, exchange it, and return the figures."""
    pair = [with_rate(path, options.fps, folder / name) for path, name in ((old, "old"), (new, "new"))]
    opened = [open_bundle(path) for path in pair]
    ways = (("on", opened[0], opened[1]), ("back", opened[1], opened[0]))
    deltas = [write_delta(before, after, folder / name).path for name, before, after in ways]
    box_folder = Path(shutil.copytree(pair[0], folder / "box"))
    results = folder / "results.jsonl"
    calm: list[Stretch] = []
    busy: list[Stretch] = []
    seconds: list[float] = []
    box = Box(box_folder, results, "--memory", options.memory)
    try:
        time.sleep(10)
        for number in range(options.rounds):
            began = time.time()
            time.sleep(max(_LEAST_S, busy[-1][1] - busy[-1][0] if busy else 0.0))
            applied = time.time()
            apply(deltas[number % 2], box_folder, box.port)
            ended = time.time()
            time.sleep(_AFTER_S + 1)
            busy.append((applied, ended + _AFTER_S))
            calm.append((max(began, applied - (ended + _AFTER_S - applied)), applied))
            seconds.append(ended - applied)
            print(f"round {number}: {seconds[-1]:.1f} s", file=sys.stderr, flush=True)
        status = box.ask("GET", "/status")[1]
    finally:
        box.process.terminate()
        box.process.communicate(timeout=60)
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    return {
        "fps": options.fps,
        "memory": options.memory,
        "apply_and_reload_s": [round(each, 2) for each in seconds],
        "reload_s": status["reloads"]["last"]["seconds"],
        "failed": status["reloads"]["failed"],
        "calm": total([missed(rows, stretch) for stretch in calm]),
        "reload": total([missed(rows, stretch) for stretch in busy]),
    }


def main() -> None:
    """Run the measurement, and print it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--fps", type=float, default=10.0, help="frames per second of each feed")
    parser.add_argument("--memory", default="all", help="budget for weights, as of gemel-run")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/var/tmp")) as temporary:
        found = measure(options.old, options.new, options, Path(temporary))
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
