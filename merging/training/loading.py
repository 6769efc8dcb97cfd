"""Loading of a workload's models for retraining: modules, images, teachers, and the exams of their queries."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from time import monotonic

import torch
from torch import nn

from ...errors import InputError, RetrainError, UnjudgedError
from ...workload.data import Images, Mixer, Splits, joined, load_data
from ...workload.data.listing import Listing
from ...workload.document.schema import Workload
from ..judging.exams import JudgedQuery, best_judgement, check_exams, contradictions, judged_query
from ..judging.rounding import rounding_score
from ..judging.running import put_channels_last
from ..layers.layers import Definition, layers_of
from ..models.networks import Network, each_network, users_of
from ..models.trace import trace_layers
from ..tasks import check_trainable, task_of
from ..tasks.embedding import EmbeddingTask
from .start import is_narrow
from .subjects import Subject, Teacher, fitting
from .training import GLANCE
from .trial import STATISTICS_IMAGES, some

__all__ = ["NOT_LOADED", "build_subjects", "subject_of"]

NOT_LOADED = "the time was up before it was loaded"
"""Reason for which a model is left out when the budget ends while models are loaded."""

_MOST_REPEATED = 10
"""Maximum number of times that a sample is among the training images."""
_ROUNDED = 200
"""Maximum number of images on which the rounded original is judged."""


def build_subjects(
    workload: Workload,
    definition: Definition,
    device: torch.device,
    loaded: Callable[[Subject], None] = lambda subject: None,
    left_out: Callable[[str, InputError], None] = lambda model, error: None,
    deadline: float = math.inf,
    samples: Mapping[str, Listing] | None = None,
) -> dict[str, Subject]:
    """Load the models of a workload that can be retrained and judged; return them by model name.

    Args:
        workload: the workload whose models are loaded.
        definition: rule that says when two layers may share a weight.
        device: device to retrain on.
        loaded: function called for each model that is loaded.
        left_out: function called for each model that is left out, with the reason.
        deadline: time of ``time.monotonic`` after which no further model is loaded; the models that are left keep their
            weights.
        samples: feed -> frames that boxes have sampled, in the order of time; queries of the feed are trained on them
            and judged by them as well.

    Raises:
        InputError: a model or data set cannot be used.
    """
    subjects: dict[str, Subject] = {}
    mixer, waiting = Mixer(workload), list(users_of(workload))

    def leave_out(name: str, error: InputError) -> None:
        """Note that a model keeps its weights."""
        waiting.remove(name)
        left_out(name, error)

    for network in each_network(workload, leave_out):
        if monotonic() > deadline:
            for name in tuple(waiting):
                leave_out(name, RetrainError(NOT_LOADED))
            break
        try:
            subject = subject_of(network, workload, definition, device, mixer, samples)
        except (RetrainError, UnjudgedError) as error:
            leave_out(network.name, error)
        else:
            waiting.remove(network.name)
            limit = fitting(GLANCE // 2, subject.held[0].choose.own.images)
            subject.narrow = is_narrow(subject, some(subject, STATISTICS_IMAGES, 0), limit)
            subjects[network.name] = subject
            loaded(subject)
    return subjects


def subject_of(
    network: Network,
    workload: Workload,
    definition: Definition,
    device: torch.device,
    mixer: Mixer,
    samples: Mapping[str, Listing] | None = None,
) -> Subject:
    """Load a model's images, make its teacher and the exams of its queries, and return all together.

    Args:
        network: the model.
        workload: the workload with the model's queries, feeds and data.
        definition: rule that says when two layers may share a weight.
        device: device that the model is retrained on.
        mixer: maker of the images of other feeds that queries without labels are judged on as well.
        samples: feed -> frames that boxes have sampled.

    Raises:
        ModelError: the model cannot be retrained.
        UnjudgedError: images show too little to judge a query by, or the original model's accuracy is 0.
        DataError: images or labels are missing or do not fit.
    """
    traced = trace_layers(network.cut)
    main = network.cut.stages["main"]
    stage = main.module.eval().to(device)
    put_channels_last(stage, next(iter(main.inputs.values())).to(device))
    spec, classes = network.cut.input, getattr(network.cut.decode, "classes", None)
    data, held = {}, []
    for query in network.queries:
        task = task_of(network, query)
        check_trainable(network, query)
        splits, mixes, train = load_data(query, workload, spec, classes), None, []
        if splits.choose.labels is None and splits.choose.boxes is None:
            mix = mixer.of(query, splits, spec)
            mixes, train = (mix.choose, mix.confirm), [mix.train]
        seen = None
        if (listing := (samples or {}).get(query.feed)) is not None:
            seen = Splits(*(part.read(spec) for part in listing.split_often()))
            train.append(_repeated(seen.train, len(splits.train) + sum(map(len, train))))
        # Queries of one model with the same data, or with the same feed and no data, train on the images once.
        key = query.data.model_dump_json() if query.data and query.data.train else query.feed
        data[key] = joined([splits.train, *train])
        made = judged_query(
            query, task, stage, splits, mixes, device, None if seen is None else (seen.choose, seen.confirm)
        )
        check_exams(made)
        held.append(replace(made, notes=tuple(_notes(made, stage, device))))
    together = joined(list(data.values()))
    teacher = Teacher(stage)
    layers = tuple(layers_of(network, definition, traced))
    return Subject(network, traced, layers, together, tuple(held), stage, teacher, device)


def _repeated(samples: Images, others: int) -> Images:
    """Return samples, repeated so that they are at least a third of the images that a model trains on.

    Args:
        samples: samples that are trained on.
        others: number of other images that are trained on.
    """
    times = min(_MOST_REPEATED, max(1, round(others / (2 * len(samples)))))
    return samples.select(torch.arange(len(samples)).repeat(times))


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
