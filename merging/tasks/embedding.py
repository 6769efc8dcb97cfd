"""Embedding task: distillation from the teacher; accuracy is similarity to the teacher's vectors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import UnjudgedError
from ...frames.preprocess import Geometry
from ...runtime.decode.agreement import LEAST_SPREAD
from ...runtime.decode.evidence import Ratios, mean_of
from ...workload.data import Images
from . import Answers, Outputs

__all__ = ["EmbeddingTask", "retrieval"]

_MIN_SPREAD = 0.01
"""Minimum variance assumed of the teacher's vectors in a batch, as a fraction of the vectors' mean squared length."""
_ERROR_WEIGHT = 0.1
"""Weight of the squared error in the distillation loss, in which the cosine term has weight 1."""
_AS_NEAR = 0.01
"""Difference of cosines below which two frames are equally near to a third: neighbours in a video are near copies."""


class EmbeddingTask:
    """Task of models whose first output is a vector for each image.

    The output is ``[N, D]``, or ``[N, C, H, W]``, which is averaged over H and W.

    Args:
        query: name of the query, for error messages.
        unit: whether the query reports vectors of unit length.
        centre: vector ``[D]`` that is subtracted before cosines are taken; None for the mean of the judged images.
    """

    def __init__(self, query: str, unit: bool = True, centre: Tensor | None = None) -> None:
        self._query, self._unit, self.centre = query, unit, centre

    def centred(self, answers: Answers) -> EmbeddingTask:
        """Return the same task with the mean of the teacher's answers to frames of many feeds as the centre.

        Frames of one fixed camera differ from their own mean by little more than noise. A centre of many feeds asks
        for the differences that matter.
        """
        return EmbeddingTask(self._query, self._unit, torch.stack(list(answers)).mean(0))

    def uncentred(self) -> EmbeddingTask:
        """Return the same task with the mean of the judged images as the centre."""
        return EmbeddingTask(self._query, self._unit)

    def distance(self, outputs: Outputs, teacher: Outputs) -> Tensor:
        """Return the mean of 1 - cosine between a model's and the teacher's vectors, plus 0.1 times the squared error.

        For the cosine, the mean of the teacher's vectors in the batch is subtracted from all vectors. The squared error
        is divided by the variance of the teacher's vectors.
        """
        student, wanted = _vectors(outputs), _vectors(teacher)
        mean = wanted.mean(0)
        # Frames of a fixed camera at night hardly differ; their small differences must not be amplified.
        least = _MIN_SPREAD * wanted.square().sum(1).mean()
        ours, theirs = (_direction(each - mean, least.sqrt()) for each in (student, wanted))
        spread = (wanted - mean).square().sum(1).mean()
        error = (student - wanted).square().sum(1).mean() / torch.maximum(spread, least)
        # Accuracy depends on the angle. On street frames, training on the angle also raised accuracy faster than
        # training on the squared error, whose gradient is five times as large. The squared error keeps vectors' length.
        return (ours - theirs).square().sum(1).mean() / 2 + _ERROR_WEIGHT * error

    def learns_from(self, images: Images) -> bool:
        """Return False, because no data set has labels for embeddings."""
        return False

    def loss(self, outputs: Outputs, images: Images, indices: Tensor, mirrored: bool) -> Tensor:
        """Raise NotImplementedError, because embeddings learn from the teacher only."""
        raise NotImplementedError("there are no labels for embeddings")

    def answers(self, outputs: Outputs, places: Sequence[Geometry]) -> Answers:
        """Return the vector of each image, ``[D]`` float32, as the query reports it."""
        vectors = _vectors(outputs)
        return list(F.normalize(vectors, dim=1) if self._unit else vectors)

    def evidence(self, answers: Answers, teacher: Answers, images: Images) -> Ratios:
        """Return the cosine between a model's and the teacher's vector of each image.

        The task's centre is subtracted from all vectors first, or else the mean of the teacher's vectors. Features
        after a ReLU point in similar directions: the vectors of two different images may have a cosine of 0.9, and only
        their differences from the mean tell the images apart. A constant output gets 0.

        Raises:
            UnjudgedError: the teacher gives the same vector for all images.
        """
        student, wanted = (torch.stack(list(each)) for each in (answers, teacher))
        mean = wanted.mean(0)
        spread = (wanted - mean).norm(dim=1).mean()
        if spread <= LEAST_SPREAD * wanted.norm(dim=1).mean():
            raise UnjudgedError(
                f"query {self._query}: its model gives the same embedding for all {len(wanted)} images to judge by;"
                " give data.val with images that differ"
            )
        centre = mean if self.centre is None else self.centre
        return mean_of(F.cosine_similarity(student - centre, wanted - centre, dim=1).numpy())

    def likeness(self, outputs: Outputs, teacher: Outputs) -> Ratios:
        """Return the cosine of the two vectors of each image, after the centre is taken away."""
        ours, theirs = (torch.stack(list(self.answers(each, ()))) for each in (outputs, teacher))
        centre = theirs.mean(0) if self.centre is None else self.centre.to(theirs.device)
        return mean_of(F.cosine_similarity(ours - centre, theirs - centre, dim=1).cpu().numpy())


def retrieval(answers: Answers, teacher: Answers) -> Ratios:
    """Return whether each image's nearest other image, among a model's vectors, is its nearest among the teacher's.

    Nearest means the largest cosine after the mean is taken away. An image that the teacher finds as near as the
    nearest one, to 0.01 of the cosine, is right too.

    Args:
        answers: the judged model's vectors of all images.
        teacher: the original model's vectors of the same images.
    """
    ours, theirs = (_cosines(torch.stack(list(each))) for each in (answers, teacher))
    nearest = theirs.amax(1)
    chosen = theirs.gather(1, ours.argmax(1, keepdim=True))[:, 0]
    return mean_of((chosen >= nearest - _AS_NEAR).double().numpy())


def _cosines(vectors: Tensor) -> Tensor:
    """Return the cosines of all pairs of vectors after their mean is taken away, ``[N, N]``; -1 on the diagonal.

    A vector that is not finite is near to nothing.
    """
    unit = F.normalize(vectors - vectors.mean(0), dim=1)
    return (unit @ unit.T).nan_to_num(-1.0).fill_diagonal_(-1.0)


def _vectors(outputs: Outputs) -> Tensor:
    """Return a model's first output as one vector for each image, ``[N, D]``; average a feature map over H and W."""
    values = outputs[0]
    return values.mean((2, 3)) if values.ndim == 4 else values


def _direction(vectors: Tensor, least: Tensor) -> Tensor:
    """Return vectors scaled to length 1, or shorter if a vector's length is below ``least``, which then divides it."""
    return vectors / torch.maximum(vectors.norm(dim=1, keepdim=True), least)
