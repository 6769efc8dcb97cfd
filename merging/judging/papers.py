"""Papers: images of one kind that judge a query, with the original model's answers to them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...errors import UnjudgedError
from ...runtime.decode.evidence import ImageEvidence
from ...workload.data import Images
from ..tasks import Answers, Outputs, Task

__all__ = ["Paper", "first_unlabelled", "unlabelled_paper"]


@dataclass(frozen=True)
class Paper:
    """Images of one kind (a query's own, a mix, or samples), with what the original model makes of them."""

    images: Images
    answers: Answers
    """Answers of the original model to the images."""
    original: ImageEvidence | None
    """Evidence about the original model. None if it finds nothing in a mix or in samples."""
    outputs: Outputs | None = None
    """Raw outputs of the original model for the images of a mix; None where they are too large to keep."""

    def first(self, count: int, task: Task) -> Paper:
        """Return a paper with the first ``count`` images only.

        Raises:
            UnjudgedError: these images show nothing to judge by.
        """
        images, answers = self.images.select(torch.arange(count)), self.answers[:count]
        return Paper(images, answers, task.evidence(answers, answers, images))


def unlabelled_paper(task: Task, images: Images, answers: Answers, outputs: Outputs | None = None) -> Paper:
    """Return the paper of a mix or of samples, on which the original model may find nothing."""
    try:
        return Paper(images, answers, task.evidence(answers, answers, images), outputs)
    except UnjudgedError:
        return Paper(images, answers, None, outputs)


def first_unlabelled(task: Task, paper: Paper, count: int) -> Paper:
    """Return a paper of a mix or of samples with the first ``count`` images only."""
    outputs = None if paper.outputs is None else tuple(value[:count] for value in paper.outputs)
    return unlabelled_paper(task, paper.images.select(torch.arange(count)), paper.answers[:count], outputs)
