"""Exams: the images that a query is judged on, with the original model's answers to them.

Every query has two exams that share no image. The search looks at ``choose`` as often as it likes. ``confirm`` says
what is accepted, and chooses no weights. An exam has the query's own images and, where these have no labels, a mix of
other images: a model that only works on what its own camera shows answers as its original did on its own images, and
in no other way elsewhere. Frames that boxes have sampled since an earlier merge are a part of its own, without labels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import UnjudgedError
from ...runtime.decode.evidence import Ratios, accuracy_of, mean_of
from ...workload.data import Images, Splits
from ...workload.document.schema import Query
from ..tasks import Answers, Outputs, Task
from ..tasks.classification import ClassificationTask
from ..tasks.embedding import EmbeddingTask, retrieval
from .intervals import Interval, relative_interval
from .judgement import Judgement, same_as_original
from .papers import Paper, first_unlabelled, unlabelled_paper
from .running import answers_and_outputs, answers_and_scores, answers_on, ready
from .sampled import agreement_on_samples, as_by_labels, sample_task

__all__ = [
    "Exam",
    "JudgedQuery",
    "best_judgement",
    "check_exams",
    "contradictions",
    "judge_query",
    "judged_query",
    "original_accuracy",
    "unchanged",
]

_MIX_PART = 5
"""Divisor of a limit of own images that gives the limit of images of a mix, which two models run on."""


@dataclass(frozen=True)
class Exam:
    """All images that judge a query at one time: while the search chooses, or when its result is confirmed."""

    own: Paper
    """Images of the query's own data or feed."""
    mix: Paper | None = None
    """Frames of other feeds, still images or altered frames of its own; None for a query with labels."""
    samples: Paper | None = None
    """Frames of the query's feed that boxes have sampled, judged without labels; None without samples."""


@dataclass(frozen=True)
class JudgedQuery:
    """A query with its exams."""

    query: Query
    task: Task
    choose: Exam
    """Exam that the search may look at."""
    confirm: Exam
    """Exam on images that choose nothing."""
    notes: tuple[str, ...] = ()
    """Lines that tell a user how the query's images or its target limit what can be found."""

    @property
    def original(self) -> float:
        """Accuracy of the original model on the query's own images that the search may look at, above 0."""
        return original_accuracy(self.choose)


def original_accuracy(exam: Exam) -> float:
    """Return the accuracy of the original model on the own images of an exam, from 0 to 1."""
    assert exam.own.original is not None
    return accuracy_of(exam.own.original)


def judge_query(
    held: JudgedQuery,
    exam: Exam,
    student: nn.Module,
    teacher: Callable[[Tensor], Outputs],
    device: torch.device,
    limit: int | None = None,
) -> Judgement:
    """Judge a model for one query by an exam.

    Args:
        held: the query.
        exam: one of the query's exams.
        student: stage of the judged model, in eval mode.
        teacher: the original model, from normalised images on ``device`` to raw outputs.
        device: device that both models are on.
        limit: maximum number of the query's own images to judge by; None for all.
    """
    task, own = held.task, exam.own
    if limit is not None and limit < len(own.images):
        try:
            own = own.first(limit, task)
        except UnjudgedError:
            # The first images may show no object. All images together do.
            own = exam.own
    mix = exam.mix
    if mix is not None and limit is not None and limit // _MIX_PART < len(mix.images):
        mix = first_unlabelled(task, mix, limit // _MIX_PART)
    assert own.original is not None
    student = ready(student, max((each.images for each in (own, mix) if each is not None), key=len), device)
    answers = answers_on(task, student, own.images, device)
    evidence = task.evidence(answers, own.answers, own.images)
    found = relative_interval(evidence, own.original)
    agreement = scores = None
    if mix is not None:
        others, ratios = answers_and_scores(task, student, teacher, mix.images, device, mix.outputs)
        scores = relative_interval(ratios, Ratios(ratios.total, ratios.total))
        agreement = _on_the_mix(task, own, mix, answers, others)
    seen = None if exam.samples is None else agreement_on_samples(task, exam.samples, student, device, limit)
    if seen is not None:
        seen = as_by_labels(seen, found, task, own, answers)
    return Judgement(accuracy_of(evidence), accuracy_of(own.original), found, agreement, scores, seen)


def _on_the_mix(task: Task, own: Paper, mix: Paper, answers: Answers, others: Answers) -> Interval | None:
    """Return how far the answers on a mix agree with the original's; None if the original finds nothing on it.

    Embeddings are for finding like frames, so they agree if the nearest frame, of the mix and of the query's own
    images, is the same.

    Args:
        task: the task of the query.
        own: the query's own images.
        mix: the mix.
        answers: the judged model's answers to the own images.
        others: the judged model's answers to the mix.
    """
    if isinstance(task, EmbeddingTask):
        wanted = [*own.answers, *mix.answers]
        return relative_interval(retrieval([*answers, *others], wanted), retrieval(wanted, wanted))
    if mix.original is None:
        return None
    return relative_interval(task.evidence(others, mix.answers, mix.images), mix.original)


def judged_query(
    query: Query,
    task: Task,
    module: nn.Module,
    splits: Splits,
    mixes: tuple[Images, Images] | None,
    device: torch.device,
    samples: tuple[Images, Images] | None = None,
) -> JudgedQuery:
    """Run the original model on all images that judge a query, and return the query with its exams.

    Args:
        query: the query.
        task: the task of the query.
        module: stage of the original model, in eval mode.
        splits: the query's own images.
        mixes: the mixes for choosing and for confirming; None for a query with labels.
        device: device that the stage is on.
        samples: frames that boxes have sampled, for choosing and for confirming; None without samples.

    Raises:
        UnjudgedError: the images show too little to judge by.
    """
    own = [_exam_images(images) for images in (splits.choose, splits.confirm)]
    mixes = None if mixes is None else (_exam_images(mixes[0]), _exam_images(mixes[1]))
    module = ready(module, max((*own, *(mixes or ())), key=len), device)
    answers = [answers_on(task, module, images, device) for images in own]
    others = [answers_and_outputs(task, module, images, device) for images in mixes or ()]
    if isinstance(task, EmbeddingTask) and others:
        task = task.centred([*answers[0], *others[0][0]])
    papers = [
        Paper(images, found, task.evidence(found, found, images)) for images, found in zip(own, answers, strict=True)
    ]
    exams = [Exam(paper) for paper in papers]
    if mixes is not None:
        mixed = [unlabelled_paper(task, images, *found) for images, found in zip(mixes, others, strict=True)]
        exams = [Exam(paper, mix) for paper, mix in zip(papers, mixed, strict=True)]
    if samples is not None:
        judge = sample_task(task)
        seen = [_exam_images(images) for images in samples]
        exams = [
            replace(exam, samples=unlabelled_paper(judge, images, answers_on(task, module, images, device)))
            for exam, images in zip(exams, seen, strict=True)
        ]
    choose, confirm = exams
    return JudgedQuery(query, task, choose, confirm)


def unchanged(exam: Exam) -> Judgement:
    """Return the judgement of a model with its original weights."""
    samples = exam.samples is not None and exam.samples.original is not None
    return same_as_original(original_accuracy(exam), exam.mix is not None, samples)


def best_judgement(held: JudgedQuery, exam: Exam) -> Judgement:
    """Return the judgement that a model with the original's answers would get, if it had other weights.

    It tells whether an exam has enough images for a query's target.
    """
    own, mix = exam.own, exam.mix
    assert own.original is not None
    found = relative_interval(own.original, own.original)
    accuracy = accuracy_of(own.original)
    if mix is None:
        return Judgement(accuracy, accuracy, found)
    same = mean_of(np.ones(len(mix.images)))
    # The answers on the mix may have an interval of any width: where it is wide, their value decides.
    return Judgement(accuracy, accuracy, found, scores=relative_interval(same, same))


def contradictions(parts: Sequence[Images]) -> int:
    """Return how many images of labelled data sets have a copy, pixel for pixel, with another label."""
    labels: dict[bytes, list[int]] = {}
    for part in parts:
        for row, label in enumerate([] if part.labels is None else part.labels.tolist()):
            digest = hashlib.blake2b(part.at(torch.tensor([row])).numpy().tobytes(), digest_size=16).digest()
            labels.setdefault(digest, []).append(label)
    return sum(len(found) for found in labels.values() if len(set(found)) > 1)


def _exam_images(images: Images) -> Images:
    """Return the images in a random order that is always the same, so that the first of them are a fair sample."""
    return images.select(torch.randperm(len(images), generator=torch.Generator().manual_seed(0)))


def check_exams(held: JudgedQuery) -> None:
    """Check that the original model is better than a guess, and that a model with one answer for all images is not.

    Raises:
        UnjudgedError: one of both is not so.
    """
    name, exam = held.query.name, held.choose
    worst = min(original_accuracy(each) for each in (exam, held.confirm))
    labels = exam.own.images.labels
    classes = 0 if labels is None else len(labels.unique())
    if worst <= 0 or (classes > 1 and worst < 1 / classes):
        raise UnjudgedError(
            f"query {name}: the model is right on {worst:.0%} of its data, less than a guess: the labels contradict it;"
            " check that they are in the order of its classes"
        )
    if isinstance(held.task, ClassificationTask) and labels is None:
        papers = [paper for paper in (exam.own, exam.mix) if paper is not None]
        if len({answer for paper in papers for answer in paper.answers}) == 1:
            raise UnjudgedError(
                f"query {name}: there is nothing to judge by in {len(exam.own.images)} images: its model gives the same"
                " class for all of them; give a data.val with images that differ"
            )
