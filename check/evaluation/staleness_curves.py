"""Staleness curves of a bundle's queries: how much their answers agree with their own answers to later frames."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from threading import Event

import numpy as np
from numpy.typing import NDArray

from ...bundles.reader import Bundle
from ...bundles.staleness import LEAST_FPS, MOST_FPS, Staleness
from ...runtime.decode.agreement import MEASURES, SURE, TaskName, agreement
from ...runtime.decode.results import Detection, Result, Segmentation, Text
from .answers import Answer
from .reference import AnswerCount, OfflineSettings, answer_all, has_several_labels, recordings

__all__ = ["CurveMeasurement", "MeasuredCurve", "curves_text", "measure_curves", "without_noise"]

_SECONDS = 2.0
"""Age in seconds of the oldest answer for which a staleness curve is measured."""
_MOST_AGES = 60
"""Maximum number of ages, counted in frames, for which a staleness curve is measured."""
_LEAST_FRAMES = 20
"""Minimum number of frames on which the values of a staleness curve are measured."""
_NEAR = 0.05
"""Largest relative difference between the measured frame rate of answers and the feed's rate, up to which the feed's
rate is used."""
_NOTHING: Mapping[TaskName, str] = {
    "classification": "no classes",
    "detection": "no objects",
    "embedding": "equal embeddings",
    "segmentation": "no objects",
    "pose": "no poses",
    "ocr": "no text",
    "raw": "no outputs",
}
"""Task of a query -> description of answers that hold nothing, from which no staleness curve can be measured."""


@dataclass(frozen=True)
class MeasuredCurve:
    """Staleness curve of one query, with facts about its measurement."""

    staleness: Staleness
    objects: int | None
    """Number of objects in the answers that old answers were compared with; None for tasks without objects."""
    rises: bool
    """Whether old answers become more accurate again with age, by more than noise."""


@dataclass(frozen=True)
class CurveMeasurement:
    """Staleness curves of a bundle's queries."""

    curves: Mapping[str, MeasuredCurve]
    """Query -> measured staleness curve, in the order of the bundle's queries."""
    omitted: Mapping[str, str]
    """Query -> reason why no staleness curve could be measured for it."""


def measure_curves(
    bundle: Bundle,
    settings: OfflineSettings,
    *,
    stop: Event | None = None,
    told: Callable[[int, int], None] = lambda done, total: None,
) -> CurveMeasurement:
    """Measure the staleness curve of every query on the frames of its feed, at the feed's frame rate.

    Every query answers every frame, with all weights in memory. A recording is played only once, because the
    scene jumps where a recording starts again, which does not happen with a camera.

    Args:
        bundle: open bundle.
        settings: number of frames, device and sources.
        stop: event that ends the measurement early. The caller must then ignore the result.
        told: function that receives progress: the number of answers so far, and the number expected.

    Raises:
        FeedError: no feed is a recording that can be read, or a source in ``settings`` is none.
        BackendError: the device cannot run the bundle.
    """
    queries = bundle.manifest.queries
    left_out: dict[str, str] = {}
    sources = recordings(bundle, settings.sources, left_out)
    count = AnswerCount(lambda done: told(done, settings.frames * len(queries)))
    answers = answer_all(
        bundle,
        sources,
        dict.fromkeys(sources, settings.frames),
        backend=settings.backend,
        threads=settings.threads,
        stop=stop,
        loop=False,
        beside=[count],
    ).answers
    curves: dict[str, MeasuredCurve] = {}
    omitted: dict[str, str] = {}
    for name, query in queries.items():
        if query.feed in left_out:
            omitted[name] = left_out[query.feed]
            continue
        if name in count.errors:
            omitted[name] = f"failed on a frame of feed {query.feed}: {count.errors[name]}"
            continue
        stated = bundle.manifest.feeds[query.feed].fps
        try:
            curves[name] = _curve(query.task, answers[name], query.feed, stated, has_several_labels(bundle, name))
        except _TooLittleError as error:
            omitted[name] = f"{error}, so no curve"
    return CurveMeasurement(curves, omitted)


class _TooLittleError(Exception):
    """Error about answers from which no staleness curve can be measured."""


def _curve(
    task: TaskName, answers: Sequence[Answer], feed: str, stated: float | None, multi_label: bool
) -> MeasuredCurve:
    """Return the staleness curve of a query.

    The answers to the last frames are the truth for all ages, so that all ages are compared on the same frames.

    Args:
        task: task of the query.
        answers: answers to all frames of the feed, in order.
        feed: name of the feed.
        stated: frame rate that the bundle states for the feed.
        multi_label: whether all classes of an answer count.

    Raises:
        _TooLittleError: there are too few frames, or nothing was found in them.
    """
    fps = _rate(answers, stated)
    if fps is None:
        raise _TooLittleError(f"feed {feed} has {len(answers)} frames, whose times give no frame rate")
    ages = min(_MOST_AGES, max(1, round(_SECONDS * fps)))
    if len(answers) < ages + _LEAST_FRAMES:
        needed = f"{ages + _LEAST_FRAMES} are needed at {fps:g} frames per second"
        raise _TooLittleError(f"feed {feed} has {len(answers)} frames, and {needed}")
    results = [answer.result for answer in answers]
    truth = results[ages:]
    fresh = agreement(task, truth, truth, multi_label=multi_label) if any(map(_holds, truth)) else None
    if not fresh:
        raise _TooLittleError(f"{_NOTHING[task]} in {len(truth)} frames of feed {feed}")
    old = [results[ages - age : len(results) - age] for age in range(1, ages + 1)]
    raw = np.array([agreement(task, each, truth, multi_label=multi_label) or 0.0 for each in old])
    values, rises = without_noise(np.minimum(raw / fresh, 1.0), len(truth))
    curve = tuple(round(float(value), 4) for value in values)
    return MeasuredCurve(Staleness(fps=fps, frames=len(truth), curve=curve), _objects(task, truth), rises)


def _rate(answers: Sequence[Answer], stated: float | None) -> float | None:
    """Return the frames per second of the feed that answers belong to; None if there are too few answers to tell."""
    if len(answers) < 2 or answers[-1].time <= answers[0].time:
        return None
    rate = (answers[-1].frame - answers[0].frame) / (answers[-1].time - answers[0].time)
    # A feed that leaves out frames of a recording reaches its rate only on average.
    fps = stated if stated is not None and abs(rate / stated - 1) <= _NEAR else float(f"{rate:.4g}")
    return fps if LEAST_FPS <= fps <= MOST_FPS else None


def _holds(result: Result) -> bool:
    """Return whether a result says anything: an object, a class, a text, or numbers."""
    if isinstance(result, Segmentation):
        return bool(result.classes)
    return bool(result.text) if isinstance(result, Text) else result != ()


def _objects(task: TaskName, truth: Sequence[Result]) -> int | None:
    """Return the number of objects that answers are compared with; None for tasks without objects."""
    found = [each for result in truth if isinstance(result, tuple) for each in result if isinstance(each, Detection)]
    return sum(each.score >= SURE for each in found) if task in ("detection", "pose") or found else None


def without_noise(values: NDArray[np.float64], frames: int) -> tuple[NDArray[np.float64], bool]:
    """Remove rises that are only noise from a staleness curve, and return whether the curve rises by more than noise.

    An answer does not become more accurate by being older, except where a scene repeats itself. A small rise is
    therefore chance: few frames were compared, and these resemble each other. Plans are compared to 1e-4, so a rise
    could make a plan seem better because its answers are older. The function fits the nearest curve that never rises
    (isotonic regression, least squares), which keeps the mean. A running minimum would be too low, because it keeps the
    lowest values, which are low by chance. A change counts as noise if it is at most 1 / sqrt(frames): two standard
    errors of a fraction near 1/2 that is measured on that many frames.

    Args:
        values: agreement at ages of 1, 2, ... frames.
        frames: number of frames on which each value was measured.

    Returns:
        The fitted curve and False; or the curve as it was measured and True, if fitting changes a value by more than
        noise.
    """
    sums = np.concatenate([[0.0], np.cumsum(values)])
    count = len(values)
    # The fitted value at i is the largest, over ends k >= i, of the least mean, over starts j <= i, of values j to k.
    fitted = np.array(
        [
            max(min((sums[k + 1] - sums[j]) / (k + 1 - j) for j in range(i + 1)) for k in range(i, count))
            for i in range(count)
        ]
    )
    if np.abs(fitted - values).max() > 1 / sqrt(frames):
        return values, True
    return fitted, False


def curves_text(found: CurveMeasurement, bundle: Bundle, path: Path) -> str:
    """Return the file of staleness curves as text: JSON for a path that ends in ``.json``, otherwise YAML.

    The YAML has a line for each query, and comments that say what was measured.
    """
    document = {name: each.staleness.model_dump(mode="json") for name, each in found.curves.items()}
    if path.suffix == ".json":
        return json.dumps(document, indent=1) + "\n"
    lines = [
        "# Written by gemel eval --staleness. A curve has the accuracy of an answer that stands for a frame 1, 2, ...",
        "# frames after its own, relative to the answer to that frame; frames: how many it was measured on.",
    ]
    for name, each in document.items():
        objects = found.curves[name].objects
        counted = "" if objects is None else f", {objects} objects"
        rises = ", rises again" if found.curves[name].rises else ""
        # JSON is YAML, and quotes keep a name such as ``on`` from being read as a boolean.
        lines.append(f"# {MEASURES[bundle.manifest.queries[name].task]}{counted}{rises}")
        lines.append(f"{json.dumps(name)}: {json.dumps(each)}")
    lines += [f"# {name}: {_printable(reason)}" for name, reason in found.omitted.items()]
    return "\n".join(lines) + "\n"


def _printable(text: str) -> str:
    """Return a text as one line without control characters, which YAML refuses in comments, too."""
    return "".join(each if each.isprintable() else "?" for each in " ".join(text.split()))
