"""Classification task: cross-entropy against labels or distillation from the teacher, judged by top-1 accuracy."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from ...frames.preprocess import Geometry
from ...runtime.decode.evidence import Ratios, mean_of
from ...workload.data import Images
from . import Answers, Outputs
from .likeness import divergence

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

    def answers(self, outputs: Outputs, places: Sequence[Geometry]) -> Answers:
        """Return the number of the best class of each image."""
        found: list[int] = outputs[0].flatten(1).argmax(1).tolist()
        return found

    def evidence(self, answers: Answers, teacher: Answers, images: Images) -> Ratios:
        """Return whether each image's best class is its label or, without labels, the teacher's best class (top-1)."""
        truth = teacher if images.labels is None else images.labels.tolist()
        return mean_of([float(found == right) for found, right in zip(answers, truth, strict=True)])

    def likeness(self, outputs: Outputs, teacher: Outputs) -> Ratios:
        """Return 1 minus the Jensen-Shannon divergence of the class probabilities, in bits."""
        ours, theirs = (self._scores(each).softmax(1) for each in (outputs, teacher))
        return mean_of((1 - divergence(ours, theirs).sum(1)).cpu().numpy())

    def _scores(self, outputs: Outputs) -> Tensor:
        """Return scores before the softmax. Log-probabilities serve as well: their softmax is the probabilities."""
        scores = outputs[0].flatten(1)  # some models keep axes of size 1 behind the classes
        return scores.clamp(min=_MIN_PROBABILITY).log() if self._probabilities else scores
