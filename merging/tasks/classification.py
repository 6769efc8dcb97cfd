"""Classification: cross-entropy to labels or to the teacher; top-1."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy

from ...workload.data import Images
from . import Outputs

__all__ = ["ClassificationTask"]

_TEMPERATURE = 2.0
_LEAST = 1e-7


class ClassificationTask:
    """The first output holds the scores of the classes, ``[N, classes]``.

    Args:
        probabilities: the model ends in a softmax.
    """

    def __init__(self, probabilities: bool = False) -> None:
        self._probabilities = probabilities

    def distance(self, outputs: Outputs, teacher: Outputs) -> Tensor:
        """Kullback-Leibler divergence of softened scores (Hinton et al. 2015, section 2)."""
        student, wanted = (F.log_softmax(self._scores(each) / _TEMPERATURE, 1) for each in (outputs, teacher))
        return F.kl_div(student, wanted, reduction="batchmean", log_target=True) * _TEMPERATURE**2

    def learns_from(self, images: Images) -> bool:
        return images.labels is not None

    def loss(self, outputs: Outputs, images: Images, indices: Tensor, mirrored: bool) -> Tensor:
        assert images.labels is not None
        return F.cross_entropy(self._scores(outputs), images.labels[indices].to(outputs[0].device))

    def accuracy(self, outputs: Outputs, teacher: Outputs, images: Images) -> float:
        """Top-1 against the labels, or against the teacher's first answer."""
        truth = teacher[0].argmax(1) if images.labels is None else images.labels
        return float(multiclass_accuracy(outputs[0], truth, outputs[0].shape[1], average="micro"))

    def _scores(self, outputs: Outputs) -> Tensor:
        """Scores before a softmax; the logarithm of its result is as good, as a softmax leaves that as it is."""
        return outputs[0].clamp(min=_LEAST).log() if self._probabilities else outputs[0]
