"""Choice among a detector's candidates, and the detections in source pixels that a query reports."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...bundles.decode_specs import DetectionDecode
from ...frames.preprocess import Geometry
from .boxes import Indices, clip, highest, nms, with_area
from .class_names import ClassNames
from .decoder import DecodeContext, FloatArray
from .results import Detection, Mask

__all__ = ["DetectionReport", "best_class"]


class DetectionReport:
    """Rules by which a detector's candidates become detections, in the same way for all detectors.

    Args:
        spec: threshold of non-maximum suppression, and the most detections.
        context: labels, threshold and classes of the query.
    """

    def __init__(self, spec: DetectionDecode, context: DecodeContext) -> None:
        self._spec, self._names = spec, ClassNames(context, spec.first_class)
        self.threshold = spec.score_threshold if context.threshold is None else context.threshold
        """Score that a candidate must exceed."""

    def choose(self, boxes: FloatArray, scores: FloatArray, classes: Indices, *, suppress: bool = True) -> Indices:
        """Return the indices of the candidates to report, best first.

        Classes that the query does not report, boxes without an area, and boxes and scores that are not finite are left
        out first.

        Args:
            boxes: ``[K, 4]`` in input pixels.
            scores: ``[K]``, all above the threshold.
            classes: ``[K]``, the background not counted.
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
        """Return detections in source pixels. A box outside the frame and an object without a mask are left out.

        Args:
            boxes: ``[K, 4]`` in input pixels, best first.
            scores: ``[K]``.
            classes: ``[K]``, the background not counted.
            geometry: position of the frame in the input.
            landmarks: ``[K, P, 2]`` in input pixels.
            keypoints: ``[K, P, 3]``: x and y in input pixels, score.
            masks: one per box, None for an object without any pixel; None for a model without masks.
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
        """Clip boxes to the frame, suppress overlapping ones, and report the rest, as torchvision does.

        Boxes that lie outside the frame are left out; torchvision's one-stage detectors report them with an area of
        zero.

        Args:
            boxes: ``[K, 4]`` in input pixels; clipped in place.
            scores: ``[K]``, all above the threshold.
            classes: ``[K]``, the background not counted.
            geometry: position of the frame in the input.
        """
        clip(boxes, geometry.area)
        kept = self.choose(boxes, scores, classes)
        return self.report(boxes[kept], scores[kept], classes[kept], geometry)


def best_class(scores: FloatArray, threshold: float, count: int) -> tuple[Indices, Indices, FloatArray]:
    """Return the places whose best class scores above the threshold.

    Args:
        scores: ``[C, A]`` of C classes at A places.
        threshold: score to exceed.
        count: most places to return, best first in no particular order.

    Returns:
        Indices of places, classes, and scores, each ``[K]``.
    """
    # The best score of all places is cheap to find; its class is looked up at the few places that remain.
    best = scores.max(axis=0)
    places = np.flatnonzero(best > threshold)
    places = places[highest(best[places], count)]
    return places, scores[:, places].argmax(axis=0), best[places]


def _to_source(points: FloatArray, geometry: Geometry) -> FloatArray:
    """Map points ``[..., 2]`` from input pixels to source pixels, and clip them to the frame."""
    twice = np.concatenate([points, points], axis=-1).reshape(-1, 4)
    return geometry.to_source(twice)[:, :2].reshape(points.shape)
