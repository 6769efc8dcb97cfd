"""Task for models without a task of their own: distillation of raw outputs, judged by the decoded answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor

from ...bundles.decode_specs import EndToEndDecode, GridDecode, RawDecode, TripletDecode
from ...compiler.heads import Cut, as_tuple
from ...errors import RetrainError, UnjudgedError
from ...frames.preprocess import Geometry
from ...runtime.decode import DecodeContext, build_decoder
from ...runtime.decode.agreement import agreement_evidence
from ...runtime.decode.average_precision import matched
from ...runtime.decode.evidence import ImageEvidence, Ratios, mean_of
from ...runtime.decode.results import Detection, Result
from ...workload.data import Images
from ...workload.document.schema import Query
from . import Answers, Outputs
from .detection import objects_of
from .likeness import correlation, score_agreement

__all__ = ["DecodedTask", "refuse_training"]

_LEAST_PART = 1e-3
"""Minimum variance assumed of one channel of a teacher's output, as a fraction of the mean variance of its channels."""
_BOX = 4
"""Number of values of a box at the beginning of a detector's output row."""


class DecodedTask:
    """Task of models whose raw outputs no other task compares: segmentation, pose, text, most detectors, raw outputs.

    Args:
        query: the query; its threshold decides which answers count.
        cut: the model's stages and tensors.
    """

    def __init__(self, query: Query, cut: Cut) -> None:
        self._query, self._cut, self._spec = query, cut, cut.decode
        self._names = cut.stages["main"].outputs

    def distance(self, outputs: Outputs, teacher: Outputs) -> Tensor:
        """Return the squared error of all outputs, relative to the variance of the teacher's channels.

        In the rows of a grid of candidates, boxes, masks and keypoints count in proportion to the teacher's best class
        score: they mean nothing where there is no object.
        """
        parts = [
            self._error(name, student, wanted)
            for name, student, wanted in zip(self._names, outputs, teacher, strict=True)
        ]
        return torch.stack(parts).mean()

    def learns_from(self, images: Images) -> bool:
        """Return False: these models are trained towards the original model's outputs; labels only judge."""
        return False

    def loss(self, outputs: Outputs, images: Images, indices: Tensor, mirrored: bool) -> Tensor:
        """Raise NotImplementedError: models without a task of their own learn from the teacher only."""
        raise NotImplementedError("labels do not train models of this task")

    def answers(self, outputs: Outputs, places: Sequence[Geometry]) -> Answers:
        """Decode raw outputs into the answer to each image. Classes are named by their index."""
        labels = [str(index) for index in range(getattr(self._spec, "classes", 0))] or None
        context = DecodeContext(self._cut.tensors.__getitem__, labels, self._query.threshold)
        decoder = build_decoder(self._spec, context)
        arrays = {name: value.numpy() for name, value in zip(self._names, outputs, strict=True)}
        return [
            decoder({name: value[[row]] for name, value in arrays.items()}, place, _no_stage)
            for row, place in enumerate(places)
        ]

    def evidence(self, answers: Answers, teacher: Answers, images: Images) -> ImageEvidence:
        """Return what each image says about the decoded answers, by the measure of the query's task.

        The truth is the images' labels or boxes, or else the teacher's answers; see
        :func:`gemel.runtime.decode.agreement.agreement`.

        Raises:
            UnjudgedError: the truth has nothing to judge by.
        """
        if images.labels is not None:
            right = zip(answers, images.labels.tolist(), strict=True)
            return mean_of([float(_best_class(answer) == label) for answer, label in right])
        found: ImageEvidence | None
        if images.boxes is not None:
            boxes = [[each for each in answer if isinstance(each, Detection)] for answer in answers]
            truth = [objects_of(each) for each in images.boxes]
            found = matched(boxes, truth, by_count=False) if any(truth) else None
        else:
            multi_label = bool(getattr(self._spec, "multi_label", False))
            found = agreement_evidence(self._query.task, answers, teacher, multi_label=multi_label)
        if found is None:
            raise UnjudgedError(
                f"query {self._query.name}: there is nothing to judge by in {len(answers)} images: its model finds"
                " nothing in them, or the same in all; give a data.val with other images"
            )
        return found

    def likeness(self, outputs: Outputs, teacher: Outputs) -> Ratios:
        """Return the agreement of class scores for a grid of candidates; otherwise the correlation of all outputs."""
        spec = self._spec
        if isinstance(spec, GridDecode):
            place = self._names.index(spec.output)
            ours, theirs = (self._grid_scores(spec, each[place]) for each in (outputs, teacher))
            return score_agreement(ours, theirs, exclusive=False)
        parts = [correlation(*(_channels_last(each) for each in pair)) for pair in zip(outputs, teacher, strict=True)]
        right, total = (sum(getattr(part, name) for part in parts) for name in ("right", "total"))
        return Ratios(right, total)

    def _grid_scores(self, spec: GridDecode, rows: Tensor) -> Tensor:
        """Return the class probabilities of all candidates of a grid, ``[N, P, classes]``."""
        rows = rows.movedim(1, -1) if spec.transposed else rows
        first = _BOX if spec.boxes is None else 0
        scores = rows[..., first : first + int(spec.objectness) + spec.classes]
        scores = scores.sigmoid() if spec.activation == "sigmoid" else scores.clamp(0, 1)
        return scores[..., :1] * scores[..., 1:] if spec.objectness else scores

    def _error(self, name: str, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the squared error of one output of the student, relative to the variance of the teacher's channels."""
        spec = self._spec
        # Channels last: those of pixels and of transposed grids are in the second axis.
        if teacher.ndim == 4 or (isinstance(spec, GridDecode) and spec.transposed and name == spec.output):
            student, teacher = student.movedim(1, -1), teacher.movedim(1, -1)
        channels = teacher.reshape(-1, teacher.shape[-1] if teacher.ndim > 1 else 1)
        variance = channels.var(0, unbiased=False)
        variance = variance.clamp(min=float(variance.mean()) * _LEAST_PART + torch.finfo(variance.dtype).tiny)
        error = (student - teacher).square() / variance
        if isinstance(spec, GridDecode) and name == spec.output:
            last = _BOX + int(spec.objectness) + spec.classes
            scores = teacher[..., last - spec.classes : last]
            sure = (scores.sigmoid() if spec.activation == "sigmoid" else scores).amax(-1, keepdim=True)
            parts = torch.cat([error[..., :_BOX], error[..., last:]], -1)
            return error[..., _BOX:last].mean() + (parts * sure).mean(-1).sum() / sure.sum().clamp(min=1e-6)
        return error.mean()


def refuse_training(query: str, cut: Cut) -> None:
    """Refuse to retrain a model whose outputs have no gradient, or no fixed order.

    Args:
        query: name of the query, for the message.
        cut: the model's stages, which are run once on their example inputs if the outputs may be integers.

    Raises:
        RetrainError: the model cannot be retrained; the message names the reason.
    """
    spec = cut.decode
    if isinstance(spec, EndToEndDecode | TripletDecode):
        reason = "its outputs are final detections, sorted by score; an export without non-maximum suppression can be"
    elif getattr(spec, "class_numbers", False) or (isinstance(spec, RawDecode) and not _has_floats(cut)):
        reason = "its outputs are whole numbers, which have no gradient; a model without ArgMax can be"
    else:
        return
    raise RetrainError(f"query {query}: cannot be retrained: {reason}")


@torch.no_grad()
def _has_floats(cut: Cut) -> bool:
    """Return whether a model, run on its example inputs, has an output of floats."""
    stage = cut.stages["main"]
    return any(value.is_floating_point() for value in as_tuple(stage.module(*stage.inputs.values())))


def _channels_last(output: Tensor) -> Tensor:
    """Return an output with its channels in the last axis, ``[N, ..., C]``; a feature map has them in the second."""
    if output.ndim == 4:
        return output.movedim(1, -1)
    return output if output.ndim > 1 else output[:, None]


def _best_class(answer: Result) -> int | None:
    """Return the number of the best class of a classification; None if the answer has no class."""
    best = answer[0] if isinstance(answer, tuple) and answer else None
    return best.class_id if best is not None else None


def _no_stage(name: str, inputs: object) -> NoReturn:
    """Raise AssertionError: models with stages behind ``main`` are refused before, so no judge asks for a stage."""
    raise AssertionError(f"a model of one stage asks for stage {name}")
