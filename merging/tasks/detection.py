"""One-stage detectors: distillation on raw heads, mAP@50 of decoded boxes."""

from __future__ import annotations

from typing import NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

from ...bundles.manifest import CenterFaceDecode, SsdDecode, YoloDecode
from ...compiler.heads import Cut
from ...errors import DataError
from ...runtime.decode import build_decoder
from ...runtime.decode.agreement import SURE
from ...runtime.decode.average_precision import mean_average_precision
from ...runtime.decode.results import Detection as Found
from ...workload.data import Boxes, Images
from ...workload.document.schema import Query
from . import Outputs
from .anchors import anchor_loss, to_input
from .heads import Heads, heads_of

__all__ = ["DetectionTask"]


class DetectionTask:
    """SSD, SSDLite, RetinaNet, YOLO and CenterFace.

    Args:
        query: its threshold decides what counts, its name stands in errors.
        cut: the model; anchors are taken from its tensors.
        spec: how its outputs are decoded.
    """

    def __init__(self, query: Query, cut: Cut, spec: SsdDecode | YoloDecode | CenterFaceDecode) -> None:
        self._query, self._cut, self._spec = query.name, cut, spec
        self._names = cut.stages["main"].outputs
        self._heads = heads_of(spec, self._names)
        self._threshold = spec.score_threshold if query.threshold is None else query.threshold

    def distance(self, outputs: Outputs, teacher: Outputs) -> Tensor:
        """Divergence of the scores everywhere, and smooth L1 of the boxes where the teacher sees something."""
        student, wanted = self._heads(outputs), self._heads(teacher)
        confidence = wanted.confidence
        # Nearly all places are background, which both agree on: a mean over places has next to no gradient. What the
        # teacher sees is the measure instead; a damaged SSDLite came back sooner so than with squared errors of the
        # raw outputs.
        total = confidence.sum().clamp(min=1.0)
        scores = _divergence(student, wanted).sum() / total
        boxes = F.smooth_l1_loss(student.boxes, wanted.boxes, reduction="none").sum(-1)
        return scores + (confidence * boxes).sum() / total

    def learns_from(self, images: Images) -> bool:
        """Boxes, for detectors with anchors; others learn from the original model, and boxes only judge them."""
        return images.boxes is not None and isinstance(self._spec, SsdDecode)

    def loss(self, outputs: Outputs, images: Images, indices: Tensor, mirrored: bool) -> Tensor:
        """The loss that such detectors are trained with."""
        assert isinstance(self._spec, SsdDecode)
        assert images.boxes is not None
        device = outputs[0].device
        truth = [
            (
                to_input(images.boxes[index], images.geometry[index], mirrored).to(device),
                images.boxes[index].classes.to(device),
            )
            for index in indices.tolist()
        ]
        anchors = torch.from_numpy(self._cut.tensors[self._spec.anchors]).to(device)
        return anchor_loss(self._heads(outputs), anchors, self._spec.box_weights, truth)

    def accuracy(self, outputs: Outputs, teacher: Outputs, images: Images) -> float:
        """mAP@50 of what the query would report, that is, of detections that pass its threshold.

        The truth is the images' boxes; without them it is the teacher's detections above the threshold, and above
        0.3 at least. A model whose scores have all sunk finds the same boxes in the same order, and reports nothing:
        so the threshold holds here, too, unlike in the usual mAP.

        Raises:
            DataError: there is no object in any of the images.
        """
        found = self._decode(outputs, images, self._threshold)
        if images.boxes is not None:
            truth = [_objects(each) for each in images.boxes]
            where = "the labels have none"
        else:
            sure = max(self._threshold, SURE)
            truth = self._decode(teacher, images, sure)
            where = f"its model finds none that scores above {sure:g}"
        if not any(truth):
            raise DataError(
                f"query {self._query}: there is no object to judge by in {len(images)} images: {where}; give data.val"
                " that has some"
            )
        return mean_average_precision(found, truth, by_count=images.boxes is None and self._spec.classes > 1)

    def _decode(self, outputs: Outputs, images: Images, threshold: float) -> list[tuple[Found, ...]]:
        decoder = build_decoder(self._spec, self._cut.tensors.__getitem__, None, threshold)
        arrays = {name: value.numpy() for name, value in zip(self._names, outputs, strict=True)}
        answers = []
        for row, place in enumerate(images.geometry):
            answer = decoder({name: value[[row]] for name, value in arrays.items()}, place, _no_stage)
            assert isinstance(answer, tuple)
            answers.append(tuple(each for each in answer if isinstance(each, Found)))
        return answers


def _objects(boxes: Boxes) -> tuple[Found, ...]:
    """Boxes as detections. Labels are numbers of classes, as decoders give them without names."""
    pairs = zip(boxes.boxes.tolist(), boxes.classes.tolist(), strict=True)
    return tuple(Found((x1, y1, x2, y2), 1.0, str(number)) for (x1, y1, x2, y2), number in pairs)


def _divergence(student: Heads, teacher: Heads) -> Tensor:
    """Kullback-Leibler divergence of each place's scores from the teacher's, ``[N, P]``."""
    if student.activation == "softmax":
        ours, theirs = student.scores.log_softmax(-1), teacher.scores.log_softmax(-1)
        return (theirs.exp() * (theirs - ours)).sum(-1)
    wanted = teacher.scores.sigmoid()
    found = F.binary_cross_entropy_with_logits(student.scores, wanted, reduction="none")
    # Its least value is not zero, as the teacher is not sure either.
    least = F.binary_cross_entropy_with_logits(teacher.scores, wanted, reduction="none")
    each = found - least
    if teacher.gated:
        each = torch.cat([each[..., :1], each[..., 1:] * wanted[..., :1]], -1)
    return each.sum(-1)


def _no_stage(name: str, inputs: object) -> NoReturn:
    raise AssertionError(f"a one-stage detector asks for stage {name}")
