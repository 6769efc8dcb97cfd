"""Choice among a detector's candidate boxes, and conversion to the detections in source pixels that a query reports."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...bundles.decode_specs import DetectionDecode
from ...frames.preprocess import Geometry
from .boxes import Indices, clip, highest, nms, with_area
from .class_names import ClassNames
from .decoder import DecodeContext, FloatArray
from .results import Detection, Mask

__all__ = ["DetectionReport", "best_class", "every_class"]


class DetectionReport:
    """Rules by which candidate boxes of any detector become the detections of a query.

    Args:
        spec: threshold of non-maximum suppression, and maximum number of detections.
        context: labels, threshold and classes of the query.
    """

    def __init__(self, spec: DetectionDecode, context: DecodeContext) -> None:
        self._spec, self._names = spec, ClassNames(context, spec.first_class)
        self.threshold = spec.score_threshold if context.threshold is None else context.threshold
        """Score that a candidate box must exceed to be reported."""

    def choose(self, boxes: FloatArray, scores: FloatArray, classes: Indices, *, suppress: bool = True) -> Indices:
        """Choose the candidate boxes that a query reports, and return their indices, best first.

        Classes that the query does not report, boxes without an area, and boxes and scores that are not finite are left
        out first.

        Args:
            boxes: candidate boxes, ``[K, 4]`` in input pixels.
            scores: score of each box, ``[K]``, all above the threshold.
            classes: class of each box, ``[K]``, the background not counted.
            suppress: whether to drop boxes that overlap a better one of the same class.
        """
        usable = with_area(boxes)
        usable = usable[self._names.wanted(classes[usable]) & np.isfinite(scores[usable])]
        limit = self._spec.max_detections
        if suppress:
            return usable[nms(boxes[usable], scores[usable], classes[usable], self._spec.nms_threshold, limit)]
        return usable[np.argsort(-scores[usable], kind="stable")[:limit]]

    def report(
        self,
        boxes: FloatArray,
        scores: FloatArray,
        classes: Indices,
        geometry: Geometry,
        *,
        landmarks: FloatArray | None = None,
        keypoints: FloatArray | None = None,
        masks: Sequence[Mask | None] | None = None,
    ) -> tuple[Detection, ...]:
        """Return chosen boxes as detections in source pixels; leave out boxes outside the frame or with an empty mask.

        Args:
            boxes: chosen boxes, ``[K, 4]`` in input pixels, best first.
            scores: score of each box, ``[K]``.
            classes: class of each box, ``[K]``, the background not counted.
            geometry: position of the frame in the input.
            landmarks: landmarks of each face, ``[K, P, 2]`` in input pixels.
            keypoints: keypoints of each object, ``[K, P, 3]``: x and y in input pixels, score.
            masks: one mask per box, None for an object without any pixel; None for a model without masks.
        """
        source = geometry.to_source(boxes)
        inside = np.flatnonzero((source[:, 2:] > source[:, :2]).all(axis=1)).tolist()
        edges, sure, numbers = source.tolist(), scores.tolist(), classes.tolist()
        dots = None if landmarks is None else _to_source(landmarks, geometry).tolist()
        joints = None
        if keypoints is not None:
            places = _to_source(keypoints[..., :2], geometry)
            joints = np.concatenate([places, keypoints[..., 2:]], axis=-1).tolist()
        return tuple(
            Detection(
                tuple(edges[row]),
                sure[row],
                self._names.name(numbers[row]),
                self._names.number(numbers[row]),
                () if dots is None else tuple(map(tuple, dots[row])),
                () if joints is None else tuple(map(tuple, joints[row])),
                None if masks is None else masks[row],
            )
            for row in inside
            if masks is None or masks[row] is not None
        )

    def clipped(
        self,
        boxes: FloatArray,
        scores: FloatArray,
        classes: Indices,
        geometry: Geometry,
    ) -> tuple[Detection, ...]:
        """Clip candidate boxes to the frame, suppress overlaps, and return the rest as detections, as torchvision does.

        Boxes that lie outside the frame are left out; torchvision's one-stage detectors report them with an area of
        zero.

        Args:
            boxes: candidate boxes, ``[K, 4]`` in input pixels; clipped in place.
            scores: score of each box, ``[K]``, all above the threshold.
            classes: class of each box, ``[K]``, the background not counted.
            geometry: position of the frame in the input.
        """
        clip(boxes, geometry.area)
        kept = self.choose(boxes, scores, classes)
        return self.report(boxes[kept], scores[kept], classes[kept], geometry)


def best_class(scores: FloatArray, threshold: float, count: int) -> tuple[Indices, Indices, FloatArray]:
    """Return the candidates of a detector whose best class scores above the threshold.

    Args:
        scores: scores of C classes for A candidates, ``[C, A]``.
        threshold: score that the best class of a candidate must exceed.
        count: maximum number of candidates to return: those with the highest scores, in no particular order.

    Returns:
        Indices of the candidates, their best classes, and their scores, each ``[K]``.
    """
    # The best score of each candidate is cheap to find; its class is looked up only for the few that remain.
    best = scores.max(axis=0)
    places = np.flatnonzero(best > threshold)
    places = places[highest(best[places], count)]
    return places, scores[:, places].argmax(axis=0), best[places]


def every_class(scores: FloatArray, threshold: float, count: int) -> tuple[Indices, Indices, FloatArray]:
    """Return all pairs of a candidate and a class that score above the threshold.

    Args:
        scores: scores of C classes for A candidates, ``[C, A]``.
        threshold: score that a pair must exceed.
        count: maximum number of pairs to return, those with the highest scores, in no particular order.

    Returns:
        Indices of candidates, classes, and scores, each ``[K]``.
    """
    classes, places = np.nonzero(scores > threshold)
    found: FloatArray = scores[classes, places]
    few = highest(found, count)
    return places[few], classes[few], found[few]


def _to_source(points: FloatArray, geometry: Geometry) -> FloatArray:
    """Map points ``[..., 2]`` from input pixels to source pixels, and clip them to the frame."""
    twice = np.concatenate([points, points], axis=-1).reshape(-1, 4)
    return geometry.to_source(twice)[:, :2].reshape(points.shape)
