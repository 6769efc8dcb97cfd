"""Recognition of semantic segmentation: a class for every pixel."""

from __future__ import annotations

from ...bundles.decode_specs import SegmentationDecode
from .evidence import Evidence, Recognised, are_scores, sum_to_one

__all__ = ["recognise_pixels"]


def recognise_pixels(found: Evidence) -> Recognised | None:
    """Recognise scores ``[N, C, h, w]``, or class numbers ``[N, h, w]`` or ``[N, 1, h, w]``; the first such output."""
    count = len(found.names) if found.names is not None else None
    for output in found.outputs:
        shape = output.shape
        if len(shape) not in (3, 4) or shape[0] != 1 or min(shape[-2:]) < 2:
            continue
        if not output.is_float and (len(shape) == 3 or shape[1] == 1):
            classes = count or output.classes or int(output.values.max(initial=0)) + 1
            return Recognised(SegmentationDecode(output=output.name, classes=classes, class_numbers=True))
        if output.is_float and len(shape) == 4:
            classes = shape[1]
            applied = output.activation
            is_applied = (
                sum_to_one(output.values, axis=1) if classes > 1 else applied == "sigmoid" and are_scores(output.values)
            )
            activation = found.activation
            if activation is None:
                activation = "none" if is_applied or applied else "softmax" if classes > 1 else "sigmoid"
            return Recognised(SegmentationDecode(output=output.name, classes=classes, activation=activation))
    return None
