"""Judging by samples: frames that boxes have sampled, to which the original model's answers are the truth."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from ...errors import UnjudgedError
from ...runtime.decode.evidence import accuracy_of
from ..tasks import Answers, Task
from ..tasks.embedding import EmbeddingTask
from .intervals import Interval, relative_interval
from .papers import Paper, first_unlabelled
from .running import answers_on

__all__ = ["agreement_on_samples", "as_by_labels", "sample_task"]


def sample_task(task: Task) -> Task:
    """Return the task that judges samples: embeddings are compared after the mean of the samples is subtracted.

    A new scene moves all embeddings into one direction. With the mean of former images as the centre, all frames of
    the scene would be alike, and any model that sees the new scene at all would seem to be right.
    """
    return task.uncentred() if isinstance(task, EmbeddingTask) else task


def _agreement(task: Task, own: Paper, answers: Answers) -> float:
    """Return how far a model's answers to labelled images agree with the original's, whatever the labels are: 0 to 1.

    Args:
        task: the task of the query.
        own: the labelled images.
        answers: the judged model's answers to them.
    """
    images = replace(own.images, labels=None, boxes=None)
    try:
        wanted = task.evidence(own.answers, own.answers, images)
        return accuracy_of(task.evidence(answers, own.answers, images)) / accuracy_of(wanted)
    except UnjudgedError:
        return 1.0


def as_by_labels(samples: Interval, found: Interval, task: Task, own: Paper, answers: Answers) -> Interval:
    """Return the agreement on samples as the relative accuracy that labels of the samples would give.

    Models that are right equally often may disagree: each is right where the other is wrong. So a model that keeps 96 %
    of the accuracy by labels may give 88 % of the original's answers. The same ratio is taken to hold on samples;
    its own uncertainty is left out of account.

    Args:
        samples: agreement on the samples.
        found: relative accuracy on the query's own images, by their labels.
        task: the task of the query.
        own: the query's own images; without labels, the agreement on samples stays as it is.
        answers: the judged model's answers to its own images.
    """
    if own.images.labels is None and own.images.boxes is None:
        return samples
    agreement = _agreement(task, own, answers)
    factor = max(1.0, found.value / agreement) if agreement > 0 else 1.0
    low, value, high = (min(1.0, part * factor) for part in (samples.low, samples.value, samples.high))
    return replace(samples, low=min(low, samples.best), value=value, high=high)


def agreement_on_samples(
    task: Task, samples: Paper, student: nn.Module, device: torch.device, limit: int | None
) -> Interval | None:
    """Return how far a model's answers to samples agree with the original's; None if that finds nothing on them.

    Args:
        task: the task of the query.
        samples: the samples.
        student: stage of the judged model, in eval mode.
        device: device that the stage is on.
        limit: maximum number of samples to judge by; None for all.
    """
    task = sample_task(task)
    if limit is not None and limit < len(samples.images):
        first = first_unlabelled(task, samples, limit)
        samples = samples if first.original is None else first
    if samples.original is None:
        return None
    answers = answers_on(task, student, samples.images, device)
    return relative_interval(task.evidence(answers, samples.answers, samples.images), samples.original)
