"""Recognition of outputs that need no family of detectors: class scores, embeddings, and outputs as they are."""

from __future__ import annotations

from ...bundles.decode_specs import ClassificationDecode, EmbeddingDecode, RawDecode
from .evidence import Evidence, MeasuredOutput, Recognised, sum_to_one

__all__ = ["recognise_classes", "recognise_embedding", "recognise_raw"]


def recognise_classes(found: Evidence) -> Recognised | None:
    """Recognise class scores ``[N, C]``, where further axes may be 1, or class numbers of an ArgMax.

    Of several such outputs, the first with as many values as there are labels is taken, or else the first.
    """
    scores = [output for output in found.floats if output.shape[:1] == (1,) and _columns(output) is not None]
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
    """Return the meaning of an output of class scores, with the activation that is not applied yet."""
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


def _columns(output: MeasuredOutput) -> int | None:
    """Return the number of values per image of an output ``[N, C]``, ``[N, C, 1, 1]`` or ``[N, 1, 1, C]``."""
    large = [size for size in output.shape[1:] if size != 1]
    if len(output.shape) < 2 or len(large) > 1:
        return None
    return large[0] if large else 1


def recognise_embedding(found: Evidence) -> Recognised | None:
    """Recognise an embedding: floats ``[N, D]`` or ``[N, C, H, W]``; of several outputs the first that is one."""
    for output in found.floats:
        if len(output.shape) in (2, 4) and output.shape[0] == 1 and output.values.size:
            return Recognised(EmbeddingDecode(), first=output.name)
    return None


def recognise_raw(found: Evidence) -> Recognised | None:
    """Take any outputs, as they are."""
    return Recognised(RawDecode())
