"""Loading of a workload's models for retraining: modules, images, teachers, and the exams of their queries."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import nn

from ...errors import InputError, RetrainError, UnjudgedError
from ...workload.data import Mixer, joined, load_data
from ...workload.document.schema import Workload
from ..judging.exams import JudgedQuery, best_judgement, check_exams, contradictions, judged_query
from ..judging.rounding import rounding_score
from ..layers.layers import Definition, layers_of
from ..models.networks import Network, each_network
from ..models.trace import trace_layers
from ..tasks import check_trainable, task_of
from ..tasks.embedding import EmbeddingTask
from .start import is_narrow
from .subjects import Subject, Teacher
from .training import GLANCE
from .trial import STATISTICS_IMAGES, some

__all__ = ["build_subjects", "subject_of"]

_ROUNDED = 200
"""Maximum number of images on which the rounded original is judged."""


def build_subjects(
    workload: Workload,
    definition: Definition,
    device: torch.device,
    loaded: Callable[[Subject], None] = lambda subject: None,
    left_out: Callable[[str, InputError], None] = lambda model, error: None,
) -> dict[str, Subject]:
    """Load the models of a workload that can be retrained and judged; return them by model name.

    Args:
        workload: the workload whose models are loaded.
        definition: rule that says when two layers may share a weight.
        device: device to retrain on.
        loaded: function called for each model that is loaded.
        left_out: function called for each model that is left out, with the reason.

    Raises:
        InputError: a model or data set cannot be used.
    """
    subjects: dict[str, Subject] = {}
    mixer = Mixer(workload)
    for network in each_network(workload, left_out):
        try:
            subject = subject_of(network, workload, definition, device, mixer)
        except (RetrainError, UnjudgedError) as error:  # noqa: PERF203 - a model is far slower than the handler
            left_out(network.name, error)
        else:
            subject.narrow = is_narrow(subject, some(subject, STATISTICS_IMAGES, 0), GLANCE)
            subjects[network.name] = subject
            loaded(subject)
    return subjects


def subject_of(
    network: Network, workload: Workload, definition: Definition, device: torch.device, mixer: Mixer
) -> Subject:
    """Load a model's images, make its teacher and the exams of its queries, and return all together.

    Args:
        network: the model.
        workload: the workload with the model's queries, feeds and data.
        definition: rule that says when two layers may share a weight.
        device: device that the model is retrained on.
        mixer: maker of the images of other feeds that queries without labels are judged on as well.

    Raises:
        ModelError: the model cannot be retrained.
        UnjudgedError: images show too little to judge a query by, or the original model's accuracy is 0.
        DataError: images or labels are missing or do not fit.
    """
    traced = trace_layers(network.cut)
    stage = network.cut.stages["main"].module.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    spec, classes = network.cut.input, getattr(network.cut.decode, "classes", None)
    data, held = {}, []
    for query in network.queries:
        task = task_of(network, query)
        check_trainable(network, query)
        splits, mixes, train = load_data(query, workload, spec, classes), None, []
        if splits.choose.labels is None and splits.choose.boxes is None:
            mix = mixer.of(query, splits, spec)
            mixes, train = (mix.choose, mix.confirm), [mix.train]
        # Queries of one model with the same data, or with the same feed and no data, train on the images once.
        key = query.data.model_dump_json() if query.data and query.data.train else query.feed
        data[key] = joined([splits.train, *train])
        made = judged_query(query, task, stage, splits, mixes, device)
        check_exams(made)
        held.append(replace(made, notes=tuple(_notes(made, stage, device))))
    together = joined(list(data.values()))
    teacher = Teacher(stage, together, device)
    layers = tuple(layers_of(network, definition, traced))
    return Subject(network, traced, layers, together, tuple(held), stage, teacher, device)


def _notes(held: JudgedQuery, stage: nn.Module, device: torch.device) -> Iterator[str]:
    """Yield what limits the merge of a query before anything is tried, and what would help.

    Args:
        held: the query.
        stage: stage of the original model, in eval mode.
        device: device that the stage is on.
    """
    target = held.query.target
    for exam, what in ((held.choose, "choose"), (held.confirm, "confirm")):
        if advice := best_judgement(held, exam).advice(target):
            yield f"the images that {what} are too few: {advice}"
            break
    if isinstance(held.task, EmbeddingTask):
        score = rounding_score(held, held.choose, stage, device, _ROUNDED)
        if score < target:
            yield (
                f"the target {target:g} is stricter than int8 rounding of the original's weights, which keeps"
                f" {score:.3f}; a target of {math.floor(score * 100) / 100:g} would ask for as much"
            )
    if copies := contradictions([held.choose.own.images, held.confirm.own.images]):
        yield f"labels contradict: {copies} images have a copy with another label; correct the labels"
