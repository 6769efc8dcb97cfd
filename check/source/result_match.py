"""Comparison of a bundle's and its source model's answers to a frame: boxes, classes, masks, text and vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...runtime.decode.masks import common_pixels
from ...runtime.decode.results import Class, Detection, Embedding, Mask, Result, Segmentation, Text

__all__ = ["AnswerMatch", "match_answers"]

LEAST_OVERLAP = 0.98
"""Minimum intersection over union of a bundle's box or mask with the source model's."""
MOST_SCORE = 0.01
"""Maximum difference between a score of a bundle and the same score of its source model."""
_LEAST_COSINE = 0.999
"""Minimum cosine between an embedding of a bundle and that of its source model."""
_LEAST_AREA = 0.001
"""Minimum fraction of the frame that a mask must cover to be compared; one pixel counts too much in a smaller mask."""
_EQUAL_EDGES = 0.05
"""Maximum difference in pixels between the edges of two boxes that count as equal, however small the boxes are."""
_MOST_SHIFT = 0.02
"""Maximum distance between a bundle's and its source model's keypoint, relative to the diagonal of the object's box."""


@dataclass(frozen=True)
class AnswerMatch:
    """Likeness of a bundle's and its source model's answers, on one frame or on many."""

    frames: int = 0
    parts: int = 0
    """Number of objects, classes, masks, texts or vectors that were compared in a bundle's and its source model's
    answers."""
    overlap: float = 1.0
    """Smallest intersection over union of compared boxes or masks, or smallest cosine of compared embeddings."""
    score: float = 0.0
    """Largest difference between a score in a bundle's answers and the same score in its source model's answers."""
    different: str | None = None
    """Description of the first difference between a bundle's and its source model's answers that is too large; None if
    none is."""
    kind: str = ""
    """Plural noun for what was compared in answers: objects, classes, masks, texts or vectors."""

    def joined(self, other: AnswerMatch) -> AnswerMatch:
        """Return the likeness of a bundle's and its source's answers on all frames of this match and of ``other``
        together."""
        return AnswerMatch(
            self.frames + other.frames,
            self.parts + other.parts,
            min(self.overlap, other.overlap),
            max(self.score, other.score),
            self.different if self.different is not None else other.different,
            self.kind or other.kind,
        )

    def __str__(self) -> str:
        if self.different is not None:
            return self.different
        if not self.parts:
            return f"no {self.kind or 'objects'} in {self.frames} frames, so none were compared"
        measures = []
        if self.kind in ("objects", "masks", "vectors"):
            measures.append(f"{'cosine' if self.kind == 'vectors' else 'overlap'} at least {self.overlap:.4f}")
        if self.kind in ("objects", "classes", "texts"):
            measures.append(f"scores within {self.score:.4f}")
        return f"{self.parts} {self.kind} in {self.frames} frames: {', '.join(measures)}"


def match_answers(found: Result, reference: Result, floor: float) -> AnswerMatch:
    """Compare a bundle's answer to a frame with that of its source model.

    Args:
        found: answer of the bundle.
        reference: answer of the source model.
        floor: score below which objects are not compared, because rounding may take them below the threshold.
    """
    if isinstance(reference, Embedding) and isinstance(found, Embedding):
        return _vectors(found.values, reference.values)
    if isinstance(reference, Text) and isinstance(found, Text):
        return _texts(found, reference)
    if isinstance(reference, Segmentation) and isinstance(found, Segmentation):
        return _masks(found, reference)
    if isinstance(reference, tuple) and isinstance(found, tuple):
        ours, theirs = ([item for item in items if isinstance(item, Class)] for items in (found, reference))
        if ours or theirs:
            return _classes(ours, theirs)
        here, there = ([item for item in items if isinstance(item, Detection)] for items in (found, reference))
        return _objects(here, there, floor).joined(_objects(there, here, floor, swapped=True))
    kinds = f"the bundle answers {type(found).__name__}, the source {type(reference).__name__}"
    return AnswerMatch(1, different=kinds)


def _vectors(found: Sequence[float], reference: Sequence[float]) -> AnswerMatch:
    ours, theirs = np.asarray(found, np.float64), np.asarray(reference, np.float64)
    if ours.shape != theirs.shape:
        return AnswerMatch(1, 1, different=f"{ours.size} values, the source has {theirs.size}", kind="vectors")
    length = float(np.linalg.norm(ours) * np.linalg.norm(theirs))
    cosine = 1.0 if np.array_equal(ours, theirs) else float(ours @ theirs) / length if length > 0 else 0.0
    different = None if cosine >= _LEAST_COSINE else f"cosine {cosine:.4f} with the source's vector"
    return AnswerMatch(1, 1, cosine, different=different, kind="vectors")


def _texts(found: Text, reference: Text) -> AnswerMatch:
    apart = abs(found.score - reference.score)
    different = None if found.text == reference.text else f"{found.text!r}, the source reads {reference.text!r}"
    parts = int(bool(reference.text))
    return AnswerMatch(1, parts, score=apart, different=different or _far("text", apart), kind="texts")


def _classes(found: Sequence[Class], reference: Sequence[Class]) -> AnswerMatch:
    """Compare a bundle's classes of an image with the source model's, by their labels.

    Two classes with nearly the same score may be in another order.
    """
    theirs = {item.label: item.score for item in reference}
    ours = {item.label: item.score for item in found}
    least = min([*theirs.values(), *ours.values()])
    match = AnswerMatch(1, len(theirs), kind="classes")
    for label in dict.fromkeys([*theirs, *ours]):
        one, other = ours.get(label), theirs.get(label)
        if one is None or other is None:
            score = other if one is None else one
            assert score is not None
            # A class at the end of the list, or at the threshold, may be there or not.
            if score - least > MOST_SCORE:
                missing = "is not in the bundle's answer" if one is None else "is not in the source's answer"
                match = match.joined(AnswerMatch(different=f"{label} {score:.3f} {missing}"))
            continue
        apart = abs(one - other)
        match = match.joined(AnswerMatch(score=apart, different=_far(label, apart)))
    return match


def _masks(found: Segmentation, reference: Segmentation) -> AnswerMatch:
    ours, theirs = ({item.label: item.mask for item in each.classes} for each in (found, reference))
    pixels = reference.size[0] * reference.size[1]
    match = AnswerMatch(1, kind="masks")
    for label in dict.fromkeys([*theirs, *ours]):
        one, other = ours.get(label), theirs.get(label)
        if max(mask.area() for mask in (one, other) if mask is not None) < _LEAST_AREA * pixels:
            continue
        overlap = 0.0 if one is None or other is None else _mask_overlap(one, other)
        different = None if overlap >= LEAST_OVERLAP else f"mask of {label}: overlap {overlap:.3f} with the source's"
        match = match.joined(AnswerMatch(0, 1, overlap, different=different))
    return match


def _objects(
    found: Sequence[Detection], reference: Sequence[Detection], floor: float, *, swapped: bool = False
) -> AnswerMatch:
    """Look for the objects of one answer to a frame among the objects of another answer.

    Args:
        found: objects among which to look.
        reference: objects to look for, if they score at least ``floor``.
        floor: score below which an object need not be found.
        swapped: whether ``reference`` is the bundle's answer.
    """
    side, count = ("bundle", 0) if swapped else ("source", 1)
    match = AnswerMatch(count, kind="objects")
    left = list(found)
    for item in sorted(reference, key=lambda each: -each.score):
        if item.score < floor:
            break
        name = f"{item.label} {item.score:.2f} at [{', '.join(f'{edge:.0f}' for edge in item.box)}] of the {side}"
        same = [each for each in left if each.label == item.label]
        best = max(same, key=lambda each: _box_overlap(each, item), default=None)
        overlap = 0.0 if best is None else _box_overlap(best, item)
        if best is None or overlap < LEAST_OVERLAP:
            match = match.joined(
                AnswerMatch(0, count, overlap, different=f"{name}: the nearest overlaps {overlap:.3f}")
            )
            continue
        left.remove(best)
        apart = abs(best.score - item.score)
        match = match.joined(
            AnswerMatch(0, count, overlap, apart, _far(name, apart) or _parts_differ(best, item, name))
        )
    return match


def _parts_differ(found: Detection, reference: Detection, name: str) -> str | None:
    """Describe how masks and keypoints of two detections with matching boxes differ; None if they do not.

    Args:
        found: detection of one answer.
        reference: matching detection of the other answer.
        name: name of the detection, for the description.
    """
    if (found.mask is None) != (reference.mask is None):
        return f"{name}: a mask on one side alone"
    if found.mask is not None and reference.mask is not None:
        overlap = _mask_overlap(found.mask, reference.mask)
        if overlap < LEAST_OVERLAP and reference.mask.area() > 100:
            return f"{name}: its mask overlaps {overlap:.3f}"
    left, top, right, bottom = reference.box
    allowed = _MOST_SHIFT * float(np.hypot(right - left, bottom - top))
    for ours, theirs in ((found.landmarks, reference.landmarks), (found.keypoints, reference.keypoints)):
        if len(ours) != len(theirs):
            return f"{name}: {len(ours)} points and {len(theirs)}"
        shifts = [float(np.hypot(a[0] - b[0], a[1] - b[1])) for a, b in zip(ours, theirs, strict=True)]
        if max(shifts, default=0.0) > allowed:
            return f"{name}: a point is moved by {max(shifts):.1f} pixels"
    return None


def _box_overlap(one: Detection, other: Detection) -> float:
    """Return the intersection over union of the boxes of two detections; 1 if all edges are nearly equal.

    Where an object lies outside the frame, a detector's box is clipped to a line or a sliver, whose area is rounding.
    """
    left, top = max(one.box[0], other.box[0]), max(one.box[1], other.box[1])
    right, bottom = min(one.box[2], other.box[2]), min(one.box[3], other.box[3])
    both = max(0.0, right - left) * max(0.0, bottom - top)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one.box, other.box))
    overlap = both / (areas - both) if areas > both else 0.0
    if overlap < LEAST_OVERLAP and max(abs(a - b) for a, b in zip(one.box, other.box, strict=True)) < _EQUAL_EDGES:
        return 1.0
    return overlap


def _mask_overlap(one: Mask, other: Mask) -> float:
    """Return the intersection over union of two masks; 0 for masks of frames with different sizes."""
    if one.size != other.size:
        return 0.0
    both = common_pixels(one.counts, other.counts, one.size)
    union = one.area() + other.area() - both
    return both / union if union else 1.0


def _far(name: str, apart: float) -> str | None:
    """Describe a difference between two scores that is too large to be rounding; None if the difference is not too
    large."""
    return f"{name}: scores differ by {apart:.3f}" if not apart <= MOST_SCORE else None
