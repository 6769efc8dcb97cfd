"""Masks and keypoints that a detector's output holds in each row, after the box and scores."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...bundles.decode_specs import EndToEndDecode, GridDecode
from ...frames.preprocess import Geometry
from .boxes import Indices
from .decoder import FloatArray
from .instance_masks import prototype_masks
from .reporting import DetectionReport
from .results import Detection

__all__ = ["RowParts"]


class RowParts:
    """Reader of the last values in each row of a detector's output: mask coefficients, keypoints, or nothing.

    Args:
        spec: spec of the decoder, with the numbers of mask coefficients and keypoints in a row.
    """

    def __init__(self, spec: GridDecode | EndToEndDecode) -> None:
        self._spec = spec

    def report(
        self,
        report: DetectionReport,
        rows: FloatArray,
        boxes: FloatArray,
        scores: FloatArray,
        classes: Indices,
        geometry: Geometry,
        outputs: Mapping[str, FloatArray],
    ) -> tuple[Detection, ...]:
        """Return detections with the masks and keypoints that their rows hold.

        Args:
            report: rules by which boxes become detections.
            rows: chosen rows of the detector's output, ``[K, values]``, best first.
            boxes: box of each row, ``[K, 4]`` in input pixels.
            scores: score of each row, ``[K]``.
            classes: class of each row, ``[K]``.
            geometry: position of the frame in the input.
            outputs: outputs of the model, with the prototypes of masks.
        """
        spec, masks, keypoints = self._spec, None, None
        if spec.masks and spec.prototypes is not None:
            coefficients = rows[:, rows.shape[1] - spec.masks :]
            masks = prototype_masks(coefficients, outputs[spec.prototypes][0], boxes, geometry)
        if spec.keypoints:
            values = rows[:, rows.shape[1] - spec.keypoints * spec.keypoint_values :]
            keypoints = values.reshape(len(rows), spec.keypoints, spec.keypoint_values).astype(np.float32)
            if spec.normalized:
                keypoints[..., :2] *= np.array([geometry.input[1], geometry.input[0]], np.float32)
            if spec.keypoint_values == 2:
                # Every keypoint counts as seen, because the model gives no score.
                keypoints = np.concatenate([keypoints, np.ones_like(keypoints[..., :1])], axis=-1)
        return report.report(boxes, scores, classes, geometry, keypoints=keypoints, masks=masks)
