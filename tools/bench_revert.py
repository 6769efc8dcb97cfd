"""Measure reverts of a bundle with original weights: bytes on disk and in memory, and seconds of a revert and back.

    .venv/bin/gemel-compile examples/street/merged/workload.yaml -o out/street/bundle \\
        --originals examples/street/workload.yaml
    .venv/bin/python tools/bench_revert.py out/street/bundle [--json revert.json]

The bundle itself stays as it is: its models are reverted in a copy, each alone.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from gemel.bundles.reader import Bundle, open_bundle
from gemel.bundles.revert_bundle import revert_queries
from gemel.check.contents.original_figures import original_figures, unique_bytes

_ROUNDS = 5
"""Number of times that each model is reverted."""


def measure(bundle: Bundle, folder: Path) -> dict[str, Any]:
    """Return the bytes of original weights, and per model the bytes in memory and the median seconds."""
    figures = original_figures(bundle)
    if figures is None or not figures["models"]:
        raise SystemExit(f"{bundle.path}: has no original weights; give gemel-compile --originals")
    box = Path(shutil.copytree(bundle.path, folder / "box", ignore=shutil.ignore_patterns("device-cache")))
    merged = unique_bytes(bundle.manifest)
    found: dict[str, Any] = {"waiting_bytes": figures["bytes"], "merged_bytes": merged, "models": {}}
    for name, model in figures["models"].items():
        seconds: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(_ROUNDS):
            for undo, times in seconds.items():
                began = perf_counter()
                revert_queries(box, model["queries"][:1], undo=undo)
                times.append(perf_counter() - began)
        if open_bundle(box).id != bundle.id:
            raise SystemExit(f"{name}: the bundle is another one after a revert and back")
        found["models"][name] = {
            "queries": model["queries"],
            "more_bytes": model["unique_bytes"] - merged,
            "revert_s": round(median(seconds[False]), 3),
            "undo_s": round(median(seconds[True]), 3),
        }
    return found


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="bundle that has original weights and no reverted query")
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(open_bundle(args.bundle), Path(folder))
    print(f"{found['merged_bytes'] / 1e6:.2f} MB run, {found['waiting_bytes'] / 1e6:.2f} MB wait")
    for name, each in found["models"].items():
        more = f"{each['more_bytes'] / 1e6:.2f} MB more in memory"
        print(f"{name}: {more}, reverted in {each['revert_s']:.2f} s, back in {each['undo_s']:.2f} s")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
