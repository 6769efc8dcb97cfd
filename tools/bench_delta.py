"""Measure a delta between two bundles: bytes sent, beside the compressed bytes of what changed, and accuracy in 8 bits.

    .venv/bin/gemel-compile examples/street/workload.yaml -o out/street/unmerged
    .venv/bin/gemel-compile examples/street/merged/workload.yaml -o out/street/bundle
    .venv/bin/python tools/bench_delta.py out/street/unmerged out/street/bundle [--frames 100] [--json delta.json]

The compressed bytes of what changed are those of each tensor that the old bundle lacks, compressed alone with zstd -19.
With ``--frames``, both bundles and the one with rounded changes answer recordings of the feeds, and a query's accuracy
is agreement with the old bundle's answers.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

from gemel.bundles.apply_delta import apply_delta
from gemel.bundles.reader import Bundle, open_bundle
from gemel.bundles.rounded_bundle import write_rounded
from gemel.bundles.write_delta import WrittenDelta, write_delta
from gemel.bundles.zstd_frames import compress
from gemel.check.evaluation.reference import answer_all, has_several_labels, recordings
from gemel.runtime.decode.agreement import agreement

_ROUNDS = 3
"""Number of times that each delta is applied."""


def changed_bytes(old: Bundle, new: Bundle) -> tuple[int, int]:
    """Return the bytes of the tensors that the old bundle lacks, and those of each compressed with zstd -19."""
    lacking = [name for name in new.manifest.tensors if name not in old.manifest.tensors]
    arrays = [new.tensor(name) for name in lacking]
    return sum(each.nbytes for each in arrays), sum(len(compress(each.tobytes(), 19)) for each in arrays)


def applied(old: Bundle, delta: WrittenDelta, folder: Path) -> float:
    """Apply a delta several times to copies of a bundle, and return the median CPU time in seconds."""
    times = []
    for _ in range(_ROUNDS):
        box = folder / "box"
        shutil.copytree(old.path, box, ignore=shutil.ignore_patterns("device-cache"))
        began = process_time()
        apply_delta(delta.path, box)
        times.append(process_time() - began)
        shutil.rmtree(box)
    return median(times)


def accuracies(reference: Bundle, others: dict[str, Bundle], frames: int) -> dict[str, dict[str, float | None]]:
    """Return query -> bundle -> agreement of its answers with those of the reference bundle."""
    sources = recordings(reference, {})
    counts = dict.fromkeys(sources, frames)
    truth = answer_all(reference, sources, counts, threads=1).answers
    found: dict[str, dict[str, float | None]] = {}
    for name, bundle in others.items():
        answers = answer_all(bundle, sources, counts, threads=1).answers
        for query, spec in reference.manifest.queries.items():
            right = [answer.result for answer in truth[query]]
            given = [answer.result for answer in answers[query]]
            several = has_several_labels(reference, query)
            found.setdefault(query, {})[name] = agreement(spec.task, given, right, multi_label=several)
    return found


def measure(old: Bundle, new: Bundle, frames: int, folder: Path) -> dict[str, Any]:
    """Return all figures of the deltas between two bundles."""
    raw, packed = changed_bytes(old, new)
    exact = write_delta(old, new, folder / "exact")
    rounded = write_rounded(old, new, folder / "rounded")
    small = write_delta(old, rounded.bundle, folder / "small", rounded=rounded)
    found: dict[str, Any] = {"changed": {"bytes": raw, "compressed": packed}}
    for name, delta in (("exact", exact), ("8bit", small)):
        found[name] = {
            "bytes": delta.bytes,
            "of_compressed": round(delta.bytes / packed, 4),
            "of_raw": round(delta.bytes / raw, 4),
            "tensors": delta.part_bytes.get(new.manifest.blob, 0),
            "forms": delta.forms,
            "apply_s": round(applied(old, delta, folder), 3),
        }
    if frames:
        found["accuracy"] = accuracies(old, {"exact": new, "8bit": rounded.bundle}, frames)
    return found


def main() -> None:
    """Run the measurement, and print it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--frames", type=int, default=0, help="frames of each feed to answer")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        found = measure(open_bundle(options.old), open_bundle(options.new), options.frames, Path(temporary))
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
