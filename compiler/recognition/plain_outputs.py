"""Recognition of outputs that need no family of detectors: class scores, embeddings, and outputs as they are."""

from __future__ import annotations

import numpy as np

from ...bundles.decode_specs import ClassificationDecode, EmbeddingDecode, RawDecode
from .evidence import Evidence, MeasuredOutput, Recognised, sum_to_one

__all__ = ["recognise_classes", "recognise_embedding", "recognise_raw"]

_LENGTH_TOLERANCE = 1e-3
"""Largest difference of a vector's length from 1 that counts as rounding; float16 is rounded to about this."""


def recognise_classes(found: Evidence) -> Recognised | None:
    """Recognise a classifier by class scores ``[N, C]`` (further axes may be 1), or by the class number of an ArgMax.

    Of several such outputs, the first with as many values as there are labels is taken, or else the first. Scores of
    the best K classes, whose numbers are in another output, do not count: their positions are no classes. A vector of
    length 1 does not count either, unless the workload says more about it.
    """
    scores = [output for output in found.floats if output.shape[:1] == (1,) and _columns(output) is not None]
    scores = [output for output in scores if not _are_best(found, output)]
    if found.names is None and found.activation is None and not found.called("classification"):
        scores = [output for output in scores if not _has_length_1(output)]
    count = len(found.names) if found.names is not None else None
    fitting = [output for output in scores if _columns(output) == count]
    if scores:
        return _scores(found, (fitting or scores)[0])
    for output in found.outputs:
        if output.values.dtype.kind in "iu" and output.values.size == 1:
            classes = count or output.classes or 1
            decode = ClassificationDecode(classes=classes, activation="none", top_k=1, class_numbers=True)
            return Recognised(decode, first=output.name)
    return None


def _scores(found: Evidence, output: MeasuredOutput) -> Recognised:
    """Return the decoder for an output of class scores, with the activation that the model does not apply itself."""
    classes = _columns(output) or 0
    applied = output.activation
    if classes > 1 and sum_to_one(output.values.reshape(1, -1)):
        applied = "softmax"
    activation = found.activation
    if activation is None:
        activation = "none" if applied is not None else "sigmoid" if classes == 1 else "softmax"
    multi_label = classes > 1 and (activation == "sigmoid" or (activation == "none" and applied == "sigmoid"))
    decode = ClassificationDecode(
        activation=activation, classes=classes, top_k=min(5, classes), multi_label=multi_label
    )
    return Recognised(decode, first=output.name)


def _are_best(found: Evidence, output: MeasuredOutput) -> bool:
    """Return whether an output has the scores of the best of more classes, as TopK gives them with class numbers."""
    beside = [other for other in found.outputs if not other.is_float and other.shape == output.shape]
    return any(other.classes is not None and other.classes > (_columns(output) or 0) for other in beside)


def _has_length_1(output: MeasuredOutput) -> bool:
    """Return whether an output is a vector of length 1 with values below 0, as embeddings are and class scores not."""
    values = output.values.astype(np.float64)
    return values.size > 2 and bool(values.min() < 0 and abs(np.linalg.norm(values) - 1) < _LENGTH_TOLERANCE)


def _columns(output: MeasuredOutput) -> int | None:
    """Return the number of values per image of an output ``[N, C]``, ``[N, C, 1, 1]`` or ``[N, 1, 1, C]``.

    None for an output of any other shape.
    """
    large = [size for size in output.shape[1:] if size != 1]
    if len(output.shape) < 2 or len(large) > 1:
        return None
    return large[0] if large else 1


def recognise_embedding(found: Evidence) -> Recognised | None:
    """Recognise an embedding: floats ``[N, D]``, or a feature map ``[N, C, H, W]``.

    Of several outputs, the first vector is taken. If all are maps, as a backbone for a detector gives them, it is the
    smallest map, which comes from the deepest layer; of maps of one size the last.
    """
    usable = [output for output in found.floats if output.shape[:1] == (1,) and output.values.size]
    usable = [output for output in usable if not _are_best(found, output)]
    vectors = [output for output in usable if len(output.shape) == 2]
    maps = [output for output in usable if len(output.shape) == 4]
    chosen = vectors[:1] or sorted(maps, key=lambda output: -output.shape[2] * output.shape[3])[-1:]
    return Recognised(EmbeddingDecode(), first=chosen[0].name) if chosen else None


def recognise_raw(found: Evidence) -> Recognised | None:
    """Accept any outputs of a model, which are then reported as they are."""
    return Recognised(RawDecode())
