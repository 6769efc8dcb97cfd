"""Recognition of semantic segmentation: a class for every pixel."""

from __future__ import annotations

import math
from typing import Literal

from ...bundles.decode_specs import SegmentationDecode
from .evidence import Evidence, MeasuredOutput, Recognised, are_scores, sum_to_one

__all__ = ["recognise_pixels"]

_ASPECT = 0.2
"""Largest difference between the logarithms of the aspect ratios of an output and the input, for an output that is a
map of the input. The ratios differ where convolutions without padding cut off a border."""


def recognise_pixels(found: Evidence) -> Recognised | None:
    """Recognise the first output of semantic segmentation.

    The output has scores ``[N, C, h, w]`` or ``[N, h, w, C]``, or class numbers, with one channel or without that axis.
    Masks of object queries (Mask2Former, MaskFormer, OneFormer) are not recognised: their channels are no classes.
    """
    if _has_queries(found):
        return None
    count = len(found.names) if found.names is not None else None
    for output in found.outputs:
        shape = output.shape
        if len(shape) not in (3, 4) or shape[0] != 1:
            continue
        layout = _layout(shape, found.size)
        channels = 1 if len(shape) == 3 else shape[1 if layout == "NCHW" else 3]
        if min(shape[1:3] if layout == "NHWC" else shape[-2:]) < 2:
            continue
        if not output.is_float and channels == 1:
            classes = max(2, count or output.classes or int(output.values.max(initial=0)) + 1)
            decode = SegmentationDecode(output=output.name, classes=classes, class_numbers=True, layout=layout)
            # A map of a single class has 1 where the class is, and 0 elsewhere.
            labels = ("background", found.names[0]) if count == 1 and found.names is not None else None
            return Recognised(decode, labels=labels)
        if output.is_float and len(shape) == 4:
            activation = found.activation or _activation(output, channels, axis=1 if layout == "NCHW" else 3)
            decode = SegmentationDecode(output=output.name, classes=channels, activation=activation, layout=layout)
            return Recognised(decode)
    return None


def _has_queries(found: Evidence) -> bool:
    """Return whether outputs are masks ``[N, Q, h, w]`` of object queries, and the queries' classes ``[N, Q, C]``."""
    masks = [output for output in found.of_rank(4) if "mask" in output.name.lower()]
    return any(mask.shape[1] == classes.shape[1] for mask in masks for classes in found.of_rank(3))


def _layout(shape: tuple[int, ...], size: tuple[int, int]) -> Literal["NCHW", "NHWC"]:
    """Return the order of an output's axes that makes pixels about equally far apart in height and in width.

    Args:
        shape: shape of the output.
        size: height and width of the input in pixels.
    """
    if len(shape) != 4:
        return "NCHW"
    last, first = (_is_map(shape[axis], shape[axis + 1], size) for axis in (2, 1))
    return "NHWC" if first and not last else "NCHW"


def _is_map(rows: int, columns: int, size: tuple[int, int]) -> bool:
    """Return whether two axes may be a map of the input: they have its aspect ratio, but for a lost border."""
    return min(rows, columns) > 1 and abs(math.log(size[0] * columns / (size[1] * rows))) < _ASPECT


def _activation(output: MeasuredOutput, classes: int, axis: int) -> Literal["softmax", "sigmoid", "none"]:
    """Return the function that turns an output into scores; ``none`` if the model applies one itself."""
    values, applied = output.values, output.activation
    is_applied = sum_to_one(values, axis) if classes > 1 else applied == "sigmoid" and are_scores(values)
    if is_applied or applied:
        return "none"
    return "softmax" if classes > 1 else "sigmoid"
