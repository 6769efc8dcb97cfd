"""Task of one-stage detectors: distillation on raw outputs, judged by mAP@50 of the decoded boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

from ...bundles.decode_specs import CenterFaceDecode, SsdDecode, YoloDecode
from ...compiler.heads import Cut
from ...errors import UnjudgedError
from ...frames.preprocess import Geometry
from ...runtime.decode import DecodeContext, build_decoder
from ...runtime.decode.agreement import SURE
from ...runtime.decode.average_precision import matched
from ...runtime.decode.evidence import PrecisionEvidence, Ratios
from ...runtime.decode.results import Detection as Found
from ...workload.data import Boxes, Images
from ...workload.document.schema import Query
from . import Answers, Outputs
from .anchors import anchor_loss, to_input
from .heads import Heads, heads_of
from .likeness import score_agreement

__all__ = ["DetectionTask", "objects_of"]


class DetectionTask:
    """Task of SSD, SSDLite, RetinaNet, YOLO and CenterFace.

    Args:
        query: the query; its threshold decides which detections count, and errors name it.
        cut: the model's stages and tensors; the anchors are among the tensors.
        spec: settings for decoding the model's outputs into boxes.
    """

    def __init__(self, query: Query, cut: Cut, spec: SsdDecode | YoloDecode | CenterFaceDecode) -> None:
        self._query, self._cut, self._spec = query.name, cut, spec
        self._names = cut.stages["main"].outputs
        self._heads = heads_of(spec, self._names)
        self._threshold = spec.score_threshold if query.threshold is None else query.threshold

    def distance(self, outputs: Outputs, teacher: Outputs) -> Tensor:
        """Return the distillation loss against the teacher: divergence of scores plus smooth L1 loss of boxes.

        A box counts in proportion to the teacher's confidence that there is an object.
        """
        student, wanted = self._heads(outputs), self._heads(teacher)
        confidence = wanted.confidence
        # Nearly all anchors or cells are background, on which both models agree, so a mean over all of them has almost
        # no gradient. Therefore divide by the teacher's total confidence. A damaged SSDLite recovered sooner with this
        # loss than with squared errors of the raw outputs.
        total = confidence.sum().clamp(min=1.0)
        scores = _divergence(student, wanted).sum() / total
        boxes = F.smooth_l1_loss(student.boxes, wanted.boxes, reduction="none").sum(-1)
        return scores + (confidence * boxes).sum() / total

    def learns_from(self, images: Images) -> bool:
        """Check whether the images have boxes and the detector is SSD, SSDLite or RetinaNet.

        Other detectors learn from the original model only, and boxes are used only to measure their accuracy.
        """
        return images.boxes is not None and isinstance(self._spec, SsdDecode)

    def loss(self, outputs: Outputs, images: Images, indices: Tensor, mirrored: bool) -> Tensor:
        """Return class plus box loss against the boxes of the images ``indices``; see :func:`.anchor_loss`."""
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

    def answers(self, outputs: Outputs, places: Sequence[Geometry]) -> Answers:
        """Decode the detections of each image that pass the query's threshold."""
        labels = [str(index) for index in range(self._spec.classes)]
        decoder = build_decoder(self._spec, DecodeContext(self._cut.tensors.__getitem__, labels, self._threshold))
        arrays = {name: value.numpy() for name, value in zip(self._names, outputs, strict=True)}
        answers: list[Any] = []
        for row, place in enumerate(places):
            answer = decoder({name: value[[row]] for name, value in arrays.items()}, place, _no_stage)
            assert isinstance(answer, tuple)
            answers.append(tuple(each for each in answer if isinstance(each, Found)))
        return answers

    def evidence(self, answers: Answers, teacher: Answers, images: Images) -> PrecisionEvidence:
        """Return the evidence of mAP@50 of the detections that the query would report, which pass its threshold.

        The truth is the images' boxes. Without boxes, the truth is the teacher's detections that score above 0.3 and
        above the query's threshold. Unlike in the usual mAP, the threshold applies to the judged model as well: a model
        whose scores have all dropped finds the same boxes in the same order, but reports none of them.

        Raises:
            UnjudgedError: no image has an object.
        """
        truth: list[tuple[Found, ...]]
        if images.boxes is not None:
            truth = [objects_of(each) for each in images.boxes]
            where = "the labels have none"
        else:
            sure = max(self._threshold, SURE)
            truth = [tuple(each for each in answer if each.score >= sure) for answer in teacher]
            where = f"its model finds none that scores above {sure:g}"
        if not any(truth):
            raise UnjudgedError(
                f"query {self._query}: there is no object to judge by in {len(truth)} images: {where}; give a data.val"
                " with objects"
            )
        return matched(answers, truth, by_count=images.boxes is None and self._spec.classes > 1)

    def likeness(self, outputs: Outputs, teacher: Outputs) -> Ratios:
        """Return the agreement of the scores of the most likely objects; see :func:`.score_agreement`."""
        ours, theirs = (self._heads(each) for each in (outputs, teacher))
        return score_agreement(ours.probabilities, theirs.probabilities, exclusive=theirs.activation == "softmax")


def objects_of(boxes: Boxes) -> tuple[Found, ...]:
    """Return boxes as detections. Their labels are class indices, the background not counted."""
    pairs = zip(boxes.boxes.tolist(), boxes.classes.tolist(), strict=True)
    return tuple(Found((x1, y1, x2, y2), 1.0, str(number)) for (x1, y1, x2, y2), number in pairs)


def _divergence(student: Heads, teacher: Heads) -> Tensor:
    """Return the Kullback-Leibler divergence of a student's scores from its teacher's, per anchor or cell, ``[N, P]``.

    If the first score says whether there is an object (:attr:`.Heads.gated`), the class scores count in proportion to
    the teacher's probability of an object.
    """
    if student.activation == "softmax":
        ours, theirs = student.scores.log_softmax(-1), teacher.scores.log_softmax(-1)
        return (theirs.exp() * (theirs - ours)).sum(-1)
    wanted = teacher.scores.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(student.scores, wanted, reduction="none")
    # For equal scores the cross-entropy is not 0 but the entropy of the teacher's scores: subtract this entropy.
    entropy = F.binary_cross_entropy_with_logits(teacher.scores, wanted, reduction="none")
    divergence = cross_entropy - entropy
    if teacher.gated:
        divergence = torch.cat([divergence[..., :1], divergence[..., 1:] * wanted[..., :1]], -1)
    return divergence.sum(-1)


def _no_stage(name: str, inputs: object) -> NoReturn:
    """Raise AssertionError, because the decoder of a one-stage detector must not run any further stage."""
    raise AssertionError(f"a one-stage detector asks for stage {name}")
