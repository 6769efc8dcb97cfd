"""Recognition of detectors of the DETR family whose outputs are logits and boxes of object queries."""

from __future__ import annotations

from ...bundles.decode_specs import DetrDecode
from .evidence import Evidence, MeasuredOutput, Recognised, are_scores
from .known_inputs import IMAGENET

__all__ = ["recognise_detr"]

_SOFTMAX_COLUMNS = (92, 251)
"""Numbers of columns in the scores of DETR on COCO (objects, panoptic): all classes, and the background."""
_SIGMOID_QUERIES = 200
"""Minimum number of object queries of a descendant of DETR with a sigmoid (RT-DETR, RF-DETR: 300); DETR has 100."""


def recognise_detr(found: Evidence) -> Recognised | None:
    """Recognise a DETR by ``logits [N, Q, C]`` and ``boxes [N, Q, 4]`` of Q object queries.

    Boxes are centre, width and height as fractions of the input.
    """
    pairs = [output for output in found.of_rank(3) if output.shape[1] <= 1000]
    boxes = [output for output in pairs if output.shape[2] == 4 and are_scores(output.values)]
    if len(boxes) > 1:
        boxes = [output for output in boxes if any(word in output.name.lower() for word in ("box", "det"))]
    if len(boxes) != 1:
        return None
    logits = [output for output in pairs if output is not boxes[0] and output.shape[1] == boxes[0].shape[1]]
    if len(logits) > 1:
        logits = [output for output in logits if any(word in output.name.lower() for word in ("logit", "label", "cls"))]
    if len(logits) != 1 or are_scores(logits[0].values):
        return None
    softmax = _is_softmax(found, logits[0])
    decode = DetrDecode(
        logits=logits[0].name,
        boxes=boxes[0].name,
        activation="softmax" if softmax else "sigmoid",
        classes=logits[0].shape[2] - softmax,
    )
    # RT-DETR and D-FINE take pixels from 0 to 1, all others ImageNet's normalisation.
    plain = found.called("rt-detr", "rtdetr", "d-fine", "dfine")
    return Recognised(decode, {"fit": "stretch"} if plain else IMAGENET)


def _is_softmax(found: Evidence, logits: MeasuredOutput) -> bool:
    """Return whether a DETR's scores need a softmax with the background in the last column, and not a sigmoid."""
    _, queries, columns = logits.shape
    if found.activation in ("softmax", "sigmoid"):
        return found.activation == "softmax"
    if found.called("rt-detr", "rtdetr", "d-fine", "dfine", "rf-detr", "deformable-detr"):
        return False
    if found.names is not None and len(found.names) in (columns, columns - 1):
        return len(found.names) == columns - 1
    return columns in _SOFTMAX_COLUMNS or queries < _SIGMOID_QUERIES
