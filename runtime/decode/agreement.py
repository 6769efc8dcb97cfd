"""Accuracy of a query's answers against reference answers, by the measures that merging uses, without PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .average_precision import Overlap, matched
from .evidence import ImageEvidence, Ratios, accuracy_of, mean_of
from .masks import common_pixels
from .results import Class, Detection, Embedding, Raw, Result, Segmentation, Text

__all__ = ["LEAST_SPREAD", "MEASURES", "SURE", "TaskName", "agreement", "agreement_evidence"]

SURE = 0.3
"""Minimum score of a reference detection that counts as a true object; detections below are mostly mistakes."""
LEAST_SPREAD = 1e-3
"""Minimum mean distance of reference embeddings from their mean, as a fraction of their mean length.

If the distance is smaller, the embeddings of different frames differ by rounding only, and no answer can be judged.
"""

TaskName = Literal["classification", "detection", "embedding", "segmentation", "pose", "ocr", "raw"]
"""Name of a query's task."""

MEASURES: Mapping[TaskName, str] = {
    "classification": "top-1 accuracy; with several labels, F1",
    "detection": "mAP@50 of boxes",
    "embedding": "mean cosine",
    "segmentation": "mean IoU of classes; mAP@50 of masks for objects",
    "pose": "AP at a keypoint similarity (OKS) of 0.5",
    "ocr": "1 - normalised edit distance",
    "raw": "mean cosine of outputs",
}
"""Task of a query -> description of the measure by which its answers are compared with reference answers."""

_Answers = Sequence[Result | None]


def agreement(
    task: TaskName, answers: _Answers, reference: Sequence[Result], *, multi_label: bool = False
) -> float | None:
    """Return the accuracy of a query's answers against reference answers, 0 to 1. A missing answer counts as wrong.

    - classification: fraction of the frames whose best class is the same. With ``multi_label``, F1 of all classes of
      all frames.
    - embedding: mean cosine between answer and reference, after subtracting the reference's mean; 0 if negative.
    - detection: mAP@50. Reference detections that score 0.3 or more count as true objects. Classes are weighted by
      their number of true objects.
    - segmentation: mean over the classes of the reference of their intersection over union, each over all frames
      together. For objects with masks, mAP@50 of the masks, as for detection.
    - pose: as for detection, by object keypoint similarity.
    - ocr: 1 - edit distance divided by the length of the longer text, mean over frames.
    - raw: cosine between outputs, mean over outputs and frames; 0 if negative.

    Args:
        task: task of the query.
        answers: one result per frame; None for a frame without an answer in time.
        reference: right results for the same frames.
        multi_label: whether all classes of a result count, not only the best one.

    Returns:
        Accuracy, 0 to 1; None if the reference cannot judge answers, because it has no frames, has no object, class or
        text in any frame, or has the same embedding for all frames.
    """
    found = agreement_evidence(task, answers, reference, multi_label=multi_label)
    return None if found is None else accuracy_of(found)


def agreement_evidence(
    task: TaskName, answers: _Answers, reference: Sequence[Result], *, multi_label: bool = False
) -> ImageEvidence | None:
    """Return what each frame says about a query's answers, by the measures and arguments of :func:`agreement`.

    Returns:
        None if the reference has nothing to judge by.
    """
    if not reference:
        return None
    if task == "classification":
        return _f1(answers, reference) if multi_label else _top1(answers, reference)
    if task == "segmentation" and any(isinstance(right, Segmentation) for right in reference):
        return _mean_iou(answers, reference)
    others: Mapping[str, Callable[[_Answers, Sequence[Result]], ImageEvidence | None]]
    others = {"embedding": _cosine, "ocr": _text, "raw": _outputs}
    return others[task](answers, reference) if task in others else _precision(task, answers, reference)


def _top1(answers: _Answers, reference: Sequence[Result]) -> ImageEvidence:
    pairs = zip(answers, reference, strict=True)
    return mean_of([float(answer is not None and _first(answer) == _first(right)) for answer, right in pairs])


def _first(result: Result) -> str | None:
    """Return the label of a result's first (best) class or detection; None if the result has none."""
    return result[0].label if isinstance(result, tuple) and result else None


def _f1(answers: _Answers, reference: Sequence[Result]) -> ImageEvidence | None:
    given, wanted = ([_labels(result) for result in results] for results in (answers, reference))
    right = [2.0 * len(labels & others) for labels, others in zip(given, wanted, strict=True)]
    total = [float(len(labels) + len(others)) for labels, others in zip(given, wanted, strict=True)]
    return Ratios(np.array(right)[:, None], np.array(total)[:, None]) if any(wanted) else None


def _labels(result: Result | None) -> set[str]:
    return {each.label for each in result if isinstance(each, Class)} if isinstance(result, tuple) else set()


def _cosine(answers: _Answers, reference: Sequence[Result]) -> ImageEvidence | None:
    wanted = np.array([_values(right) for right in reference])
    mean = wanted.mean(0)
    if _lengths(wanted - mean).mean() <= LEAST_SPREAD * _lengths(wanted).mean():
        return None
    # The mean stands for a missing answer: relative to the mean it is zero, so its cosine is 0.
    given = np.array([mean if answer is None else _values(answer) for answer in answers])
    ours, theirs = given - mean, wanted - mean
    product = (ours * theirs).sum(1) / np.maximum(_lengths(ours) * _lengths(theirs), 1e-12)
    # A diverged model answers NaN, which counts as wrong.
    return mean_of(product)


def _values(result: Result) -> tuple[float, ...]:
    assert isinstance(result, Embedding)
    return result.values


def _lengths(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths: NDArray[np.float64] = np.linalg.norm(vectors, axis=1)
    return lengths


def _precision(task: TaskName, answers: _Answers, reference: Sequence[Result]) -> ImageEvidence | None:
    truth = [[each for each in _detections(right) if each.score >= SURE] for right in reference]
    overlap: Overlap = "boxes"
    # Objects of the reference without a mask or keypoints are left out where these are compared.
    if task == "segmentation":
        overlap, truth = "masks", [[each for each in frame if each.mask is not None] for frame in truth]
    elif task == "pose":
        overlap, truth = "keypoints", [[each for each in frame if each.keypoints] for frame in truth]
    if not any(truth):
        return None
    return matched([_detections(answer) for answer in answers], truth, by_count=True, overlap=overlap)


def _detections(result: Result | None) -> list[Detection]:
    return [each for each in result if isinstance(each, Detection)] if isinstance(result, tuple) else []


def _mean_iou(answers: _Answers, reference: Sequence[Result]) -> ImageEvidence | None:
    columns = {label: place for place, label in enumerate(sorted(set(chain.from_iterable(map(_masks, reference)))))}
    if not columns:
        return None
    common, union = np.zeros((2, len(reference), len(columns)))
    for row, (answer, right) in enumerate(zip(answers, reference, strict=True)):
        wanted, given = _masks(right), _masks(answer)
        # A wrong mask counts also in a frame that does not show its class.
        for label in (wanted.keys() | given.keys()) & columns.keys():
            areas = [masks[label].area() for masks in (wanted, given) if label in masks]
            both = 0
            if len(areas) == 2 and wanted[label].size == given[label].size:
                both = common_pixels(wanted[label].counts, given[label].counts, wanted[label].size)
            common[row, columns[label]] = both
            union[row, columns[label]] = sum(areas) - both
    return Ratios(common, union)


def _masks(result: Result | None) -> dict[str, Any]:
    return {each.label: each.mask for each in result.classes} if isinstance(result, Segmentation) else {}


def _text(answers: _Answers, reference: Sequence[Result]) -> ImageEvidence | None:
    wanted = [right.text for right in reference if isinstance(right, Text)]
    if not any(wanted):
        return None
    given = [answer.text if isinstance(answer, Text) else None for answer in answers]
    return mean_of([_likeness(text, right) for text, right in zip(given, wanted, strict=True)])


def _likeness(text: str | None, right: str) -> float:
    """Return how alike a text is to the right one: 1 - edit distance / length of the longer text.

    0 if there is no text, 1 if both texts are empty.
    """
    if text is None:
        return 0.0
    return 1 - _edits(text, right) / max(len(text), len(right), 1)


def _edits(text: str, right: str) -> int:
    """Return the edit distance of two texts: the minimum number of inserted, deleted and replaced characters."""
    row = list(range(len(right) + 1))
    for number, character in enumerate(text, 1):
        corner, row[0] = row[0], number
        for place, wanted in enumerate(right, 1):
            corner, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, corner + (character != wanted))
    return row[-1]


def _outputs(answers: _Answers, reference: Sequence[Result]) -> ImageEvidence | None:
    right, total = np.zeros((2, len(reference), 1))
    for row, (answer, wanted) in enumerate(zip(answers, reference, strict=True)):
        given = answer.outputs if isinstance(answer, Raw) else {}
        values = wanted.outputs if isinstance(wanted, Raw) else {}
        right[row] = sum(_output_likeness(given.get(name), value) for name, value in values.items())
        total[row] = len(values)
    return Ratios(right, total) if total.any() else None


def _output_likeness(given: NDArray[Any] | None, wanted: NDArray[Any]) -> float:
    """Return the cosine between a raw output and the right one; 1 if equal, 0 if missing or of another shape.

    For outputs that are not numbers, return the fraction of equal elements.
    """
    if given is None or given.shape != wanted.shape:
        return 0.0
    if np.array_equal(given, wanted):
        return 1.0
    if wanted.dtype.kind not in "biuf":
        return float(np.mean(given == wanted))
    ours, theirs = (values.astype(np.float64).reshape(-1) for values in (given, wanted))
    length = float(np.linalg.norm(ours) * np.linalg.norm(theirs))
    # A diverged model answers NaN, which counts as wrong.
    return float(np.nan_to_num(ours @ theirs / length)) if length > 0 else 0.0
