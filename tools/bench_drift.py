"""Measure how soon ``gemel drift`` finds a loss of accuracy, and how often it raises a false alarm.

    .venv/bin/gemel-compile examples/street/workload.yaml -o out/street/original
    .venv/bin/python tools/bench_drift.py out/street/bundle out/street/original --json out/drift.json

Answers are real: the merged bundle and the original models of the street example answer frames of its three cameras
as they are and with disturbances (night by gamma, snow by noise, blur, a moved camera by crop), through JPEG as samples
are. What is simulated is which of these answers come in which order: samples are drawn at random, as of frames that
were taken far apart.

Three questions. How soon is a drift found, a disturbance after which a query's accuracy, by the task's measure on all
frames together, is below its target? How often is a query reverted that keeps its target: in scenes in which it does,
and at the very edge, with mistakes of the merge enlarged, or objects lost, until the accuracy is just the target? And
how large must a loss be to be found within 20 samples in 95 % of all cases, by the same enlarging?
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from drift_scenes import DISTURBANCES, Answered, answer_scenes
from rich.console import Console
from rich.table import Table

from gemel.bundles.reader import open_bundle
from gemel.check.drift.bundle_answers import BundleAnswers
from gemel.check.drift.evidence import Detector
from gemel.check.drift.image_scores import ImageScores
from gemel.check.drift.judge import DriftLimits
from gemel.runtime.decode.agreement import SURE, TaskName, agreement
from gemel.runtime.decode.results import Embedding, Result

_BEFORE = 100
"""Number of samples without drift before a drift begins."""
_COPIES = 10
"""Number of copies of each frame's detections, of which other objects are lost."""
_MOST = 200
"""Number of samples after which a drift counts as not found."""
_LOSSES = (0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7)
"""Losses of accuracy that are made by enlarging mistakes."""


@dataclass(frozen=True)
class Scene:
    """Answers of one query in one scene, and their accuracy."""

    name: str
    query: str
    task: TaskName
    target: float
    answers: Answered

    @property
    def accuracy(self) -> float | None:
        """Accuracy of the merged model by the task's measure on all frames together; None if there is nothing to
        judge by."""
        return agreement(self.task, self.answers.again, self.answers.reference)

    @property
    def given(self) -> float | None:
        """Accuracy of the answers that the box gave on live frames, beside the original's on stored ones."""
        return agreement(self.task, self.answers.given, self.answers.reference)

    def samples(self, random: np.random.Generator) -> Iterator[tuple[Result, Result, Result]]:
        """Yield the answers to random frames: given, again, and the original's."""
        count = len(self.answers.reference)
        while True:
            place = int(random.integers(count))
            yield self.answers.given[place], self.answers.again[place], self.answers.reference[place]


class Scores:
    """Scores of samples, as the judge makes them; those of one frame's objects are made once."""

    def __init__(self, task: TaskName) -> None:
        self._scores, self._known = ImageScores(task), dict[tuple[int, ...], float | None]()
        self._keeps = task != "embedding"
        self._alive: list[Any] = []

    def __call__(self, given: Result, again: Result, reference: Result) -> float | None:
        key = (id(given), id(again), id(reference))
        if self._keeps and key in self._known:
            return self._known[key]
        found = self._scores.score((given, again), reference)
        best = None if found is None else max(found)
        if self._keeps:
            self._known[key] = best
            self._alive += [given, again, reference]  # or another object may get the same id
        return best


def _lossy(scene: Scene, loss: float, random: np.random.Generator) -> Scene:
    """Return a scene without drift in which answers are worse, so that the mean of single accuracies is 1 - ``loss``.

    Mistakes of embeddings are enlarged; of detections, objects are lost at random, each with the same probability.
    """
    embeds = scene.task == "embedding"
    reference = scene.answers.reference if embeds else scene.answers.reference * _COPIES
    make = _enlarged(scene.answers) if embeds else _thinned(reference, random)
    low, high = 0.0, 100.0 if embeds else 1.0
    for _ in range(30 if embeds else 12):
        middle = (low + high) / 2
        low, high = (middle, high) if make(middle)[1] > 1 - loss else (low, middle)
    worse = make(low)[0]
    return Scene(scene.name, scene.query, scene.task, scene.target, Answered(worse, worse, reference))


def _enlarged(answers: Answered) -> Callable[[float], tuple[list[Result], float]]:
    """Return a function that gives embeddings with mistakes enlarged by a factor, and their mean cosine."""
    right, given = (
        np.array([each.values for each in side if isinstance(each, Embedding)])
        for side in (answers.reference, answers.again)
    )
    centred = right - right.mean(0)

    def make(factor: float) -> tuple[list[Result], float]:
        ours = centred + factor * (given - right)
        cosines = np.sum(ours * centred, 1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(centred, axis=1)
        return [Embedding(tuple(each)) for each in (right + factor * (given - right)).tolist()], float(cosines.mean())

    return make


def _thinned(reference: Sequence[Result], random: np.random.Generator) -> Callable[[float], tuple[list[Result], float]]:
    """Return a function that gives detections of which a part is lost, and the mean accuracy of single frames."""
    detections = [each if isinstance(each, tuple) else () for each in reference]
    luck = [random.random(len(each)) for each in detections]

    def make(part: float) -> tuple[list[Result], float]:
        worse: list[Result] = [
            tuple(item for item, chance in zip(each, chances, strict=True) if chance >= part)  # type: ignore[misc]
            for each, chances in zip(detections, luck, strict=True)
        ]
        # Of a frame whose objects are all found, precision is 1 at each recall; so accuracy is the share that is left.
        sure = [[item.score >= SURE for item in each] for each in detections]
        shares = [
            sum(keep and chance >= part for keep, chance in zip(keeps, chances, strict=True)) / sum(keeps)
            for keeps, chances in zip(sure, luck, strict=True)
            if any(keeps)
        ]
        return worse, float(np.mean(shares))

    return make


def _delay(before: Scene, after: Scene, limits: DriftLimits, random: np.random.Generator) -> tuple[int | None, int]:
    """Return after how many samples with a score a drift was found, and after how many samples in all.

    None if it was not found within 200 samples with a score, or was found before it began.
    """
    detector, scores = Detector(limits.level(before.target)), Scores(before.task)
    for _, answers in zip(range(_BEFORE), before.samples(random), strict=False):
        score = scores(*answers)
        if score is not None and detector.add(score) >= limits.revert:
            return None, 0
    judged = 0
    for number, answers in enumerate(after.samples(random), 1):
        score = scores(*answers)
        if score is not None:
            judged += 1
            if detector.add(score) >= limits.revert:
                return judged, number
        if judged >= _MOST or number >= 20 * _MOST:
            return None, number
    raise AssertionError("samples never end")


def _false_reverts(scene: Scene, windows: int, limits: DriftLimits, random: np.random.Generator) -> tuple[int, float]:
    """Return the number of reverts in windows of 20 samples without drift, and the mean score."""
    detector, scores, reverts = Detector(limits.level(scene.target)), Scores(scene.task), 0
    total, count = 0.0, 0
    for answers in scene.samples(random):
        score = scores(*answers)
        if score is None:
            continue
        total, count = total + score, count + 1
        if detector.add(score) >= limits.revert:
            reverts += 1
            detector = Detector(limits.level(scene.target))
        if count == windows * limits.samples:
            return reverts, total / count
    raise AssertionError("samples never end")


def _found(delays: Sequence[int | None], most: int) -> float:
    return sum(delay is not None and delay <= most for delay in delays) / max(1, len(delays))


def measure(scenes: Sequence[Scene], drifts: int, windows: int, console: Console) -> dict[str, Any]:
    """Simulate drifts and times without drift, print tables, and return all figures."""
    limits, random = DriftLimits(), np.random.default_rng(1)
    calm = {scene.query: scene for scene in scenes if scene.name == "none"}
    known = [(scene, accuracy) for scene in scenes if (accuracy := scene.accuracy) is not None]
    drifting = [(scene, accuracy) for scene, accuracy in known if accuracy < scene.target]
    holding = [(scene, accuracy) for scene, accuracy in known if accuracy >= scene.target]
    report: dict[str, Any] = {"drifts": [], "calm": [], "losses": []}

    table = Table("query", "scene", "accuracy", "drifts", "found within 20", "median", title="real drifts")
    each = -(-drifts // max(1, len(drifting)))
    for scene, accuracy in sorted(drifting, key=lambda item: item[1]):
        tries = [_delay(calm[scene.query], scene, limits, random) for _ in range(each)]
        delays = [delay for delay, _ in tries]
        median = float(np.median([_MOST if delay is None else delay for delay in delays]))
        table.add_row(
            scene.query,
            scene.name,
            f"{accuracy:.3f}",
            str(each),
            f"{_found(delays, limits.samples):.0%}",
            f"{median:g}",
        )
        report["drifts"].append(
            {"query": scene.query, "scene": scene.name, "accuracy": accuracy, "delays": delays,
             "in_all": [number for _, number in tries]}
        )  # fmt: skip
    console.print(table)
    every = [delay for row in report["drifts"] for delay in row["delays"]]
    console.print(f"{len(every)} drifts: {_found(every, limits.samples):.1%} found within {limits.samples} samples")
    for least in (0.05, 0.1, 0.15, 0.2, 0.3, 0.5):
        rows = [row for row in report["drifts"] if 1 - row["accuracy"] >= least]
        delays = [delay for row in rows for delay in row["delays"]]
        if delays:
            console.print(f"  loss of at least {least:.0%}: {len(delays)} drifts, {_found(delays, limits.samples):.1%}")

    table = Table("query", "scene", "accuracy", "as given", "score", "windows", "false reverts", title="without drift")
    for scene, accuracy in holding:
        reverts, mean = _false_reverts(scene, windows, limits, random)
        report["calm"].append(
            {"query": scene.query, "scene": scene.name, "accuracy": accuracy, "given": scene.given, "score": mean,
             "windows": windows, "reverts": reverts}
        )  # fmt: skip
    for scene in calm.values():
        edge = _lossy(scene, 1 - scene.target, random)
        reverts, mean = _false_reverts(edge, windows, limits, random)
        report["calm"].append(
            {"query": scene.query, "scene": "at the edge", "accuracy": edge.accuracy, "given": edge.given,
             "score": mean, "windows": windows, "reverts": reverts}
        )  # fmt: skip
    for row in report["calm"]:
        table.add_row(
            row["query"],
            row["scene"],
            f"{row['accuracy']:.3f}",
            f"{row['score']:.3f}",
            str(windows),
            str(row["reverts"]),
        )
    console.print(table)
    total = sum(row["reverts"] for row in report["calm"])
    count = windows * len(report["calm"])
    console.print(f"{total} false reverts in {count} windows: {1000 * total / count:.2f} in 1,000")

    table = Table("query", "loss", "found within 20", "median", "95 % within", title="made losses")
    for scene in calm.values():
        for loss in _LOSSES:
            worse = _lossy(scene, loss, random)
            delays = [_delay(scene, worse, limits, random)[0] for _ in range(drifts)]
            numbers = [_MOST if delay is None else delay for delay in delays]
            quantile = float(np.quantile(numbers, 0.95))
            report["losses"].append(
                {"query": scene.query, "loss": loss, "found": _found(delays, limits.samples),
                 "median": float(np.median(numbers)), "quantile": quantile}
            )  # fmt: skip
            late = f"more than {_MOST}" if quantile >= _MOST else f"{quantile:g}"
            row = report["losses"][-1]
            table.add_row(scene.query, f"{loss:.0%}", f"{row['found']:.0%}", f"{row['median']:g}", late)
    console.print(table)
    return report


def main() -> None:
    """Have both bundles answer all scenes, simulate, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("merged", type=Path, help="bundle of the merged models")
    parser.add_argument("originals", type=Path, help="bundle of the original models")
    parser.add_argument("--frames", type=int, default=60, help="frames of each camera (default: %(default)s)")
    parser.add_argument(
        "--scenes",
        nargs="+",
        choices=DISTURBANCES,
        default=list(DISTURBANCES),
        help="scenes to look at; none is needed",
    )
    parser.add_argument("--drifts", type=int, default=200, help="simulated drifts (default: %(default)s)")
    parser.add_argument("--windows", type=int, default=1000, help="windows without drift (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of models (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    options = parser.parse_args()
    console = Console(width=140)
    merged, originals = open_bundle(options.merged), open_bundle(options.originals)
    with (
        BundleAnswers(merged, threads=options.threads) as ours,
        BundleAnswers(originals, threads=options.threads) as theirs,
    ):
        answers = answer_scenes(
            ours, theirs, options.frames, options.scenes, lambda scene: console.print(f"answering: {scene}")
        )
    queries = merged.manifest.queries
    scenes = [
        Scene(name, query, queries[query].task, queries[query].target, answered)
        for (name, query), answered in answers.items()
    ]
    report = measure(scenes, options.drifts, options.windows, console)
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
