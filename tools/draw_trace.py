"""Draw a Chrome trace that ``gemel-run --trace`` wrote: when models ran, segments were loaded and frames decoded.

.venv/bin/python tools/draw_trace.py trace.json --begin 2 --end 3 -o docs/images/trace.svg
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

_ORDER = ("run", "load", "decode")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path, help="file that gemel-run --trace wrote")
    parser.add_argument("--begin", type=float, default=0.0, help="first second to draw")
    parser.add_argument("--end", type=float, default=1.0, help="last second to draw")
    parser.add_argument("-o", "--output", type=Path, required=True, help="picture to write, SVG")
    options = parser.parse_args(arguments)
    events = json.loads(options.trace.read_text())["traceEvents"]
    lanes = {each["tid"]: each["args"]["name"] for each in events if each["name"] == "thread_name"}
    rows = sorted(lanes.values(), key=lambda name: (_ORDER.index(name.split()[0]), name))
    spans = [
        (lanes[each["tid"]], each["name"], each["ts"] / 1e6 - options.begin, each["dur"] / 1e6)
        for each in events
        if each["ph"] == "X" and each["ts"] / 1e6 < options.end and (each["ts"] + each["dur"]) / 1e6 > options.begin
    ]
    length = options.end - options.begin
    names = list(dict.fromkeys(name for lane, name, _, _ in spans if lane == "run"))
    figure, panel = plt.subplots(figsize=(11, 0.5 * len(rows) + 0.8))
    for lane, name, begin, duration in spans:
        color = f"C{names.index(name) % 10}" if lane == "run" else "0.7"
        panel.broken_barh([(begin, duration)], (rows.index(lane) - 0.4, 0.8), color=color, edgecolor="white")
        if lane in ("run", "load") and duration > 0.016 * length and 0 <= begin < length:
            rotation = 90 if duration < 0.08 * length else 0
            middle = begin + duration / 2
            panel.text(middle, rows.index(lane), name, ha="center", va="center", fontsize=6, rotation=rotation)
    panel.set_yticks(range(len(rows)), rows)
    panel.invert_yaxis()
    panel.set_xlim(0, length)
    panel.set_xlabel("seconds")
    figure.tight_layout()
    figure.savefig(options.output)


if __name__ == "__main__":
    main()
