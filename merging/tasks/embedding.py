"""Embeddings: the teacher's vectors are the truth."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import DataError
from ...runtime.decode.agreement import LEAST_SPREAD
from ...workload.data import Images
from . import Outputs

__all__ = ["EmbeddingTask"]

_LEAST_SHARE = 0.01
"""Of the teacher's vectors, squared, that their spread in a batch is taken to be at least."""
_ERROR_WEIGHT = 0.1


class EmbeddingTask:
    """The first output holds a vector an image, ``[N, D]`` or ``[N, C, H, W]``, which is averaged over H and W.

    Args:
        query: named in errors.
        unit: the query reports vectors of unit length.
    """

    def __init__(self, query: str, unit: bool = True) -> None:
        self._query, self._unit = query, unit

    def distance(self, outputs: Outputs, teacher: Outputs) -> Tensor:
        """Mean of 1 - cosine to the teacher's vectors, both relative to these' mean in the batch, and a little of the
        squared distance, relative to the teacher's spread, as it is."""
        student, wanted = _vectors(outputs), _vectors(teacher)
        mean = wanted.mean(0)
        # Frames of a standing camera at night hardly differ: what they differ by must not be blown up.
        least = _LEAST_SHARE * wanted.square().sum(1).mean()
        ours, theirs = (_direction(each - mean, least.sqrt()) for each in (student, wanted))
        spread = (wanted - mean).square().sum(1).mean()
        error = (student - wanted).square().sum(1).mean() / torch.maximum(spread, least)
        # The angle is what accuracy sees. On street frames it also led there faster than the error, whose gradient is
        # five times as large; the error keeps the length.
        return (ours - theirs).square().sum(1).mean() / 2 + _ERROR_WEIGHT * error

    def learns_from(self, images: Images) -> bool:
        return False

    def loss(self, outputs: Outputs, images: Images, indices: Tensor, mirrored: bool) -> Tensor:
        raise NotImplementedError("there are no labels for embeddings")

    def accuracy(self, outputs: Outputs, teacher: Outputs, images: Images) -> float:
        """Mean cosine of student's and teacher's vectors, both relative to the mean of the teacher's; 0 if negative.

        Features after a ReLU all point the same way: of two different images they may have a cosine of 0.9. What
        tells images apart is how they differ from their mean. A constant answer gets 0.

        Raises:
            DataError: to the teacher, all images are alike.
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
    values = outputs[0]
    return values.mean((2, 3)) if values.ndim == 4 else values


def _direction(vectors: Tensor, least: Tensor) -> Tensor:
    """Vectors of unit length; shorter ones where they were shorter than ``least``."""
    return vectors / torch.maximum(vectors.norm(dim=1, keepdim=True), least)
