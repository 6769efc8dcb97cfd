"""Decoder of Faster R-CNN, Mask R-CNN and Keypoint R-CNN, which are two-stage detectors with a feature pyramid.

Results are those of torchvision's RegionProposalNetwork.filter_proposals, MultiScaleRoIAlign and
RoIHeads.postprocess_detections. The networks between these steps are stages of the model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from ...bundles.decode_specs import FasterRcnnDecode
from ...frames.preprocess import Geometry
from .activations import sigmoid, softmax
from .boxes import Indices, clip, decode_deltas, highest, nms
from .decoder import DecodeContext, FloatArray, RunStage
from .reporting import DetectionReport
from .results import Detection
from .roi_parts import heatmap_keypoints, pasted_masks

__all__ = ["FasterRcnnDecoder"]


class FasterRcnnDecoder:
    """Decoder of Faster R-CNN: chooses region proposals, pools their features, and reads their classes and boxes."""

    def __init__(self, spec: FasterRcnnDecode, context: DecodeContext) -> None:
        self._spec = spec
        self._anchors = [context.tensor(name) for name in spec.anchors]
        self._report = DetectionReport(spec, context)

    def __call__(self, outputs: Mapping[str, FloatArray], geometry: Geometry, run: RunStage) -> tuple[Detection, ...]:
        rois = self._proposals(outputs, geometry)
        if len(rois) == 0:
            return ()
        head = run("head", {"pooled": self._pool(outputs, rois, run, "roi")})
        probabilities = softmax(head["logits"])[:, 1:]
        row, classes = np.nonzero(probabilities > self._report.threshold)
        scores = probabilities[row, classes]
        deltas = head["boxes"].reshape(len(rois), -1, 4)[row, classes + 1]
        boxes = decode_deltas(deltas, rois[row], self._spec.box_weights)
        if not self._spec.masks and not self._spec.keypoints:
            return self._report.clipped(boxes, scores, classes, geometry)
        clip(boxes, geometry.area)
        kept = self._report.choose(boxes, scores, classes)
        return self._with_parts(boxes[kept], scores[kept], classes[kept], outputs, geometry, run)

    def _with_parts(
        self,
        boxes: FloatArray,
        scores: FloatArray,
        classes: Indices,
        outputs: Mapping[str, FloatArray],
        geometry: Geometry,
        run: RunStage,
    ) -> tuple[Detection, ...]:
        """Return detections with masks or keypoints, for which further stages run on the final boxes ``[K, 4]``."""
        masks, keypoints = None, None
        if len(boxes) and self._spec.masks:
            logits = run("mask", {"pooled": self._pool(outputs, boxes, run, "mask_roi")})["masks"]
            masks = pasted_masks(logits[np.arange(len(boxes)), classes + 1], boxes, geometry)
        if len(boxes) and self._spec.keypoints:
            pooled = self._pool(outputs, boxes, run, "keypoint_roi")
            keypoints = heatmap_keypoints(run("keypoint", {"pooled": pooled})["heatmaps"], boxes)
        return self._report.report(boxes, scores, classes, geometry, keypoints=keypoints, masks=masks)

    def _proposals(self, outputs: Mapping[str, FloatArray], geometry: Geometry) -> FloatArray:
        """Return the region proposals (boxes that may hold an object), ``[K, 4]`` in input pixels."""
        spec = self._spec
        parts = []
        for level, anchors in enumerate(self._anchors):
            boxes, logits = _level(
                outputs[f"objectness_{level}"][0], outputs[f"deltas_{level}"][0], anchors, spec.pre_nms_topk
            )
            keep = clip(boxes, geometry.area, spec.min_size)
            boxes, scores = boxes[keep], sigmoid(logits[keep])
            if spec.rpn_score_threshold > 0:
                keep = np.flatnonzero(scores >= spec.rpn_score_threshold)
                boxes, scores = boxes[keep], scores[keep]
            one = np.zeros(len(boxes), np.intp)
            keep = nms(boxes, scores, one, spec.rpn_nms_threshold, spec.post_nms_topk)
            parts.append((boxes[keep], scores[keep]))
        boxes, scores = (np.concatenate(part) for part in zip(*parts, strict=True))
        return boxes[highest(scores, spec.post_nms_topk)]

    def _pool(self, outputs: Mapping[str, FloatArray], rois: FloatArray, run: RunStage, stage: str) -> FloatArray:
        """Run RoIAlign for each region on its level of the feature pyramid, and return the features ``[K, C, h, w]``.

        Args:
            outputs: outputs of stage ``main``.
            rois: regions, ``[K, 4]`` in input pixels.
            run: function that runs a stage of the model.
            stage: name of the stage with RoIAlign.
        """
        level = self._levels(rois)
        pooled: FloatArray | None = None
        for index, (name, scale) in enumerate(zip(self._spec.roi_levels, self._spec.roi_scales, strict=True)):
            members = np.flatnonzero(level == index)
            if len(members) == 0:
                continue
            scaled = rois[members] * np.float32(scale)
            part = run(stage, {"features": outputs[f"features_{name}"], "rois": scaled})["pooled"]
            if len(members) == len(rois):
                return part
            if pooled is None:
                pooled = np.empty((len(rois), *part.shape[1:]), part.dtype)
            pooled[members] = part
        assert pooled is not None
        return pooled

    def _levels(self, rois: FloatArray) -> Indices:
        """Return for each region the feature level to pool from, as an index into ``roi_levels``.

        Lin et al., "Feature Pyramid Networks", equation 1.
        """
        spec = self._spec
        sizes = np.sqrt((rois[:, 2] - rois[:, 0]) * (rois[:, 3] - rois[:, 1]))
        level = np.floor(spec.canonical_level + np.log2(sizes / np.float32(spec.canonical_scale)) + np.float32(1e-6))
        # If two levels share a scale (MobileNet's last two), the deeper one is never chosen, as in torchvision.
        lowest, highest = (-round(math.log2(spec.roi_scales[end])) for end in (0, -1))
        return np.asarray(np.clip(level, lowest, highest) - lowest, np.intp)


def _level(
    objectness: FloatArray, deltas: FloatArray, anchors: FloatArray, count: int
) -> tuple[FloatArray, FloatArray]:
    """Return the boxes and objectness logits of the ``count`` best anchors of one feature level of a Faster R-CNN.

    Args:
        objectness: ``[A, H, W]``, logits of A kinds of anchors.
        deltas: box deltas relative to the anchors, ``[4A, H, W]``.
        anchors: ``[H * W * A, 4]`` in input pixels.
        count: maximum number of anchors to return.
    """
    kinds = len(objectness)
    flat = objectness.reshape(-1)
    chosen = highest(flat, count)
    # Only the chosen deltas are gathered, so that outputs need not be transposed: they have channels first, while in
    # the list of anchors the kind varies fastest.
    kind, cell = np.divmod(chosen, flat.size // kinds)
    picked = deltas.reshape(kinds, 4, -1)[kind, :, cell]
    return decode_deltas(picked, anchors[cell * kinds + kind], (1, 1, 1, 1)), flat[chosen]
