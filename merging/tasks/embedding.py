"""Embedding task: distillation from the teacher; accuracy is similarity to the teacher's vectors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import DataError
from ...runtime.decode.agreement import LEAST_SPREAD
from ...workload.data import Images
from . import Outputs

__all__ = ["EmbeddingTask"]

_MIN_SPREAD = 0.01
"""Minimum variance assumed of the teacher's vectors in a batch, as a fraction of the vectors' mean squared length."""
_ERROR_WEIGHT = 0.1
"""Weight of the squared error in the distillation loss, in which the cosine term has weight 1."""


class EmbeddingTask:
    """Task of models whose first output is a vector for each image.

    The output is ``[N, D]``, or ``[N, C, H, W]``, which is averaged over H and W.

    Args:
        query: name of the query, for error messages.
        unit: whether the query reports vectors of unit length.
    """

    def __init__(self, query: str, unit: bool = True) -> None:
        self._query, self._unit = query, unit

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

    def accuracy(self, outputs: Outputs, teacher: Outputs, images: Images) -> float:
        """Return the mean cosine between a model's and the teacher's vectors, or 0 if the mean is negative.

        The mean of the teacher's vectors is subtracted from all vectors first. Features after a ReLU point in similar
        directions: the vectors of two different images may have a cosine of 0.9, and only their differences from the
        mean tell the images apart. A constant output gets 0.

        Raises:
            DataError: the teacher gives the same vector for all images.
        """
        student, wanted = _vectors(outputs), _vectors(teacher)
        if self._unit:
            student, wanted = F.normalize(student, dim=1), F.normalize(wanted, dim=1)
        mean = wanted.mean(0)
        spread = (wanted - mean).norm(dim=1).mean()
        if spread <= LEAST_SPREAD * wanted.norm(dim=1).mean():
            raise DataError(
                f"query {self._query}: its model gives the same embedding for all {len(images)} images to judge by;"
                " give data.val with images that differ"
            )
        cosine = F.cosine_similarity(student - mean, wanted - mean, dim=1)
        return float(cosine.mean().clamp(0, 1))


def _vectors(outputs: Outputs) -> Tensor:
    """Return a model's first output as one vector for each image, ``[N, D]``; average a feature map over H and W."""
    values = outputs[0]
    return values.mean((2, 3)) if values.ndim == 4 else values


def _direction(vectors: Tensor, least: Tensor) -> Tensor:
    """Return vectors scaled to length 1, or shorter if a vector's length is below ``least``, which then divides it."""
    return vectors / torch.maximum(vectors.norm(dim=1, keepdim=True), least)
