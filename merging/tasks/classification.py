"""Classification task: cross-entropy against labels or distillation from the teacher, judged by top-1 accuracy."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy

from ...workload.data import Images
from . import Outputs

__all__ = ["ClassificationTask"]

_TEMPERATURE = 2.0
"""Temperature of distillation, by which class scores of student and teacher are divided."""
_MIN_PROBABILITY = 1e-7
"""Minimum probability; smaller probabilities are raised to this value before their logarithm is taken."""


class ClassificationTask:
    """Task of models whose first output is the scores of classes that exclude each other, ``[N, classes]``.

    Args:
        probabilities: whether the model ends in a softmax, so that its scores are probabilities.
    """

    def __init__(self, probabilities: bool = False) -> None:
        self._probabilities = probabilities

    def distance(self, outputs: Outputs, teacher: Outputs) -> Tensor:
        """Return the Kullback-Leibler divergence of the scores from the teacher's, both divided by a temperature.

        See Hinton et al. 2015, section 2.
        """
        student, wanted = (F.log_softmax(self._scores(each) / _TEMPERATURE, 1) for each in (outputs, teacher))
        return F.kl_div(student, wanted, reduction="batchmean", log_target=True) * _TEMPERATURE**2

    def learns_from(self, images: Images) -> bool:
        """Check whether the images have class labels."""
        return images.labels is not None

    def loss(self, outputs: Outputs, images: Images, indices: Tensor, mirrored: bool) -> Tensor:
        """Return the cross-entropy of the outputs against the labels of the images ``indices``."""
        assert images.labels is not None
        return F.cross_entropy(self._scores(outputs), images.labels[indices].to(outputs[0].device))

    def accuracy(self, outputs: Outputs, teacher: Outputs, images: Images) -> float:
        """Return top-1 accuracy against the labels or, without labels, against the teacher's top class."""
        truth = teacher[0].flatten(1).argmax(1) if images.labels is None else images.labels
        scores = outputs[0].flatten(1)
        return float(multiclass_accuracy(scores, truth, scores.shape[1], average="micro"))

    def _scores(self, outputs: Outputs) -> Tensor:
        """Return scores before the softmax. Log-probabilities serve as well: their softmax is the probabilities."""
        scores = outputs[0].flatten(1)  # some models keep axes of size 1 behind the classes
        return scores.clamp(min=_MIN_PROBABILITY).log() if self._probabilities else scores
