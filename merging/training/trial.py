"""Trials, each of which applies a sharing map, sets starting weights, retrains, and measures the accuracies reached."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Literal

import torch
from torch import Tensor, nn

from ..forms.apply import FormCoder
from ..forms.form_map import NO_FORMS, FormMap
from ..forms.quantize import Coded
from ..layers.sharing import SharingMap, Slot, Use, bind, own_parameters, release
from .align import align
from .deadline import stopping
from .goals import holds, reached
from .seeding import seeded
from .start import average, donate, refit_heads, reset_statistics
from .subjects import Judgement, State, Subject, batch_size, by_area, fitting, in_batches, judged_by_both, judgements_of
from .training import GLANCE, Recipe, TrainingProgress, retrain, strain

__all__ = ["STATISTICS_IMAGES", "Outcome", "Start", "Trial", "TrialRunner", "some"]

STATISTICS_IMAGES = 1280
"""Number of images of 64 x 64 pixels to measure BatchNorm statistics on; of larger images, as many pixels."""
_HEAD_IMAGES = 2000
"""Number of images of 64 x 64 pixels to refit heads on; of larger images, as many pixels."""
_LEAST_IMAGES = 32
"""Minimum number of images to measure BatchNorm statistics and refit heads on, however large they are."""
_HEAD_ROWS = 20000
"""Maximum number of equations to fit a head to, summed over all batches."""
_START_BATCH = 16
"""Minimum number of images in a batch when starting weights are computed, unless they are large."""
_COMPARISON_PART = 4
"""Divisor of the numbers of images used for starting weights that are only compared with others and not trained."""


@dataclass(frozen=True)
class Start:
    """Choice of starting weights for the layers that a trial shares for the first time.

    - ``donor``: the weight and the BatchNorm of the first model in ``order``, followed by BatchNorm re-estimation and
      head refitting (:mod:`.start`).
    - ``first``: the weight of the first model in ``order`` and nothing else, as in the paper's published code.
    - ``average``: the mean of all weights after channel alignment (:mod:`.align`), followed by BatchNorm re-estimation
      and head refitting.
    - ``keep``: the weights do not change, because nothing is shared for the first time.
    - ``refit``: the weights do not change either; BatchNorm re-estimation and head refitting follow.
    """

    kind: Literal["donor", "first", "average", "keep", "refit"] = "donor"
    order: tuple[str, ...] = ()
    """Names of models, preferred donors first. For ``average``, each model is aligned with the models before it."""


@dataclass(frozen=True)
class Trial:
    """A request to share layers, set their starting weights, and retrain some models."""

    group: str
    """Title of the trial in reports; it names the layers that are shared for the first time."""
    sharing: SharingMap
    """Sharing map that holds during the trial, earlier sharing included."""
    learners: frozenset[str]
    """Names of the models that are retrained. All other models keep their weights, shared ones included."""
    start: Start = Start()
    recipe: Recipe | None = None
    """Settings of the retraining; None evaluates the starting weights without training."""
    base: Literal["committed", "last", "original", "earlier"] = "committed"
    """Weights that the trial starts from: of the last commit, after the last trial that trained, before merging, or for
    the learners those of the earlier merge that the search goes on from, and for all others those of the last commit.
    """
    forms: FormMap = NO_FORMS
    """Forms that weights of the learners get, after the starting weights are set."""
    measure: bool = False
    """Whether the trial only measures. Its result is then never committed."""
    again: bool = False
    """Whether models of an earlier merge are judged again, without any change: by all images, those that confirm
    included, and by measured values. Images that confirm choose no weights by this: a model that they speak against
    gets others."""
    release: bool = False
    """Whether to give the learners their original weights and nothing else. Such a trial is committed without a run."""


@dataclass(frozen=True)
class Outcome:
    """Result of a trial of a merge: accuracies, losses and time."""

    accuracies: dict[str, float]
    """Query name -> accuracy, for the queries of the trial's learners (models to retrain). It is measured on all
    images that choose, but on a subset for starting weights that do not meet all goals; for models that are judged
    again, on these or on those that confirm, wherever they keep less."""
    relative: dict[str, float]
    """Query name -> smallest relative accuracy (accuracy / original model's accuracy) of all parts of the exam, for
    queries of the trial's learners (models to retrain)."""
    met: frozenset[str]
    """Names of the trial's learners (models to retrain) whose queries all reach their targets by their lower bounds, on
    the images that choose; for models that are judged again, by the measured values on these and on those that confirm.
    """
    samples: int
    """Number of images that models were trained on, summed over models and steps."""
    seconds: float
    """Duration of the trial in seconds."""
    ended: str
    """Why training ended: done, met, hopeless, time, start (there was no training), or a description of the failure."""
    strain: dict[Use, float] = field(default_factory=dict)
    """Shared weight -> its gradient sensitivity (:func:`.training.strain`). Empty if all learners reach their goals or
    nothing was trained."""
    states: dict[str, State] = field(default_factory=dict)
    """Model name -> weights after the trial, for the trial's learners (models to retrain); empty after a failure."""
    codes: dict[Use, Coded] = field(default_factory=dict)
    """Weight -> codes of its form, for the forms of the trial; empty if the trial only measures."""

    @property
    def has_spare(self) -> bool:
        """Whether more training is useless, as all goals are reached with the spare that the recipe asks for."""
        return self.ended in ("start", "met")


class TrialRunner:
    """Runner of trials, one after the other, on the same PyTorch modules. No trial affects a later one.

    Args:
        subjects: the models of the workload, by name.
        seed: seed for all random numbers of every trial.
    """

    def __init__(self, subjects: Mapping[str, Subject], seed: int = 0) -> None:
        self.subjects = dict(subjects)
        self._seed = seed
        self._modules = {name: subject.model for name, subject in subjects.items()}
        self._own = own_parameters(self._modules)

    def __call__(
        self,
        trial: Trial,
        states: Mapping[str, State],
        shared: SharingMap,
        deadline: float = math.inf,
        watch: Callable[[TrainingProgress], None] = lambda progress: None,
    ) -> Outcome:
        """Run a trial and return its outcome.

        Args:
            trial: the trial.
            states: model name -> weights to start from, for all models.
            shared: sharing map that ``states`` already follows.
            deadline: time of ``time.monotonic`` at which the trial stops. A training that has begun is measured and
                kept.
            watch: function called after each training step with the state of the training.

        Raises:
            TimeUpError: the deadline passed before the starting weights were measured.
        """
        try:
            with seeded(self._seed, self.subjects.values()):
                return self._run(trial, states, shared, deadline, watch)
        finally:
            release(self._modules, self._own)

    def _run(
        self,
        trial: Trial,
        states: Mapping[str, State],
        shared: SharingMap,
        deadline: float,
        watch: Callable[[TrainingProgress], None],
    ) -> Outcome:
        """Run a trial and leave its shared parameters bound; the caller must separate them (:func:`.release`)."""
        began = monotonic()
        learners = {name: self.subjects[name] for name in sorted(trial.learners)}
        for name, subject in self.subjects.items():
            subject.restore(states[name])
        with stopping(learners.values(), deadline):
            coder = self._begin(trial, learners, shared)
            judged = judged_by_both(learners.values()) if trial.again else _judged_at_first(learners, trial)
        met = _met(learners, judged, holds if trial.again else reached)
        samples, ended = 0, "start"
        strained: dict[Use, float] = {}
        if trial.recipe is not None and not reached(learners.values(), judged, trial.recipe.spare):
            result = retrain(
                self.subjects, trial.learners, trial.recipe, coder, seed=self._seed, deadline=deadline, watch=watch
            )
            samples, ended = result.samples, result.trouble or result.ended
            if result.trouble:
                # The trained weights are unusable: report the accuracies of the starting weights, and no weights.
                return Outcome(*_values(judged), frozenset(), samples, monotonic() - began, ended)
            judged = result.judgements or judgements_of(learners.values())
            met = _met(learners, judged)
            if ended == "done" and reached(learners.values(), judged, trial.recipe.spare):
                # Measured on a subset of the images, some goal was missed; on all images, every goal is met.
                ended = "met"
            if met < trial.learners:
                for subject in learners.values():
                    strained |= strain(subject, trial.sharing, seed=self._seed)
        if trial.measure:
            return Outcome(*_values(judged), met, samples, monotonic() - began, ended, strained)
        found = {name: subject.state() for name, subject in learners.items()}
        return Outcome(*_values(judged), met, samples, monotonic() - began, ended, strained, found, coder.codes)

    def _begin(self, trial: Trial, learners: Mapping[str, Subject], shared: SharingMap) -> FormCoder:
        """Set a trial's starting weights, and bind weights that share a tensor; return the weights that get a form."""
        known = set(shared.slots)
        new = [slot for slot in trial.sharing.slots if slot not in known]
        start = trial.start
        # A model that is not retrained keeps its weights, so it must be the donor of every slot that it is in.
        fixed = tuple(name for name in self.subjects if name not in learners)
        changed: frozenset[str] = frozenset()
        if start.kind == "average":
            free = [slot for slot in new if not any(use.model in fixed for use in slot)]
            self._align(free, start.order, shared.models)
            average(self.subjects, free)
            new = [slot for slot in new if slot not in free]
            changed = SharingMap(tuple(free)).models
        if start.kind not in ("keep", "refit"):
            changed |= donate(self.subjects, new, (*fixed, *start.order, *learners), norms=start.kind == "donor")
        bind(self._modules, trial.sharing)
        if start.kind == "refit":
            changed = trial.learners
        if start.kind in ("donor", "average", "refit"):
            part = 1 if trial.recipe is not None else _COMPARISON_PART
            # A donor that received no weight computes the same as before, so its statistics and heads still fit.
            for subject in (learners[name] for name in learners if name in changed):
                if not subject.narrow:
                    reset_statistics(subject, some(subject, STATISTICS_IMAGES // part, self._seed))
                images = min(by_area(_HEAD_IMAGES // part, subject.train, _LEAST_IMAGES), len(subject.train))
                rows = _HEAD_ROWS // math.ceil(images / batch_size(subject.train, _START_BATCH))
                refit_heads(subject, some(subject, _HEAD_IMAGES // part, self._seed), rows)
        bases = {key: base for subject in learners.values() for key, base in subject.bases.items()}
        return FormCoder(self._modules, trial.forms, bases)

    def _align(self, slots: Sequence[Slot], order: Sequence[str], fixed: frozenset[str]) -> None:
        """Align the channels of each model with the models before it, in place.

        Args:
            slots: sets of layer weights; the weights of one set are averaged afterwards.
            order: names of models, in the order in which they are aligned.
            fixed: names of models whose channels must not move, because they share weights already.
        """
        for place, name in enumerate(order):
            pairs = []
            for slot in slots:
                before = [use for use in slot if use.model in order[:place]]
                first = min(before, key=lambda use: order.index(use.model), default=None)
                if first is not None and name not in fixed:
                    pairs += [(self._weight(first), self._weight(use)) for use in slot if use.model == name]
            if pairs:
                align(self.subjects[name], next(some(self.subjects[name], 1, self._seed)), pairs)

    def _weight(self, use: Use) -> nn.Parameter:
        """Return the PyTorch parameter that a use (model name and parameter name) refers to."""
        return self._modules[use.model].get_parameter(use.parameter)


def some(subject: Subject, count: int, seed: int) -> Iterator[Tensor]:
    """Yield a random sample of a model's training images, normalised, in batches of nearly equal size.

    Args:
        subject: the model.
        count: number of images of 64 x 64 pixels to draw; of larger images, as many pixels, but at least 32 images.
        seed: seed of the sample.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(subject.train), generator=generator)[
        : by_area(count, subject.train, min(count, _LEAST_IMAGES))
    ]
    for part in in_batches(order, batch_size(subject.train, _START_BATCH)):
        yield subject.train.batch(part).to(subject.device)


def _judged_at_first(learners: Mapping[str, Subject], trial: Trial) -> dict[str, Judgement]:
    """Judge models with starting weights by a part of the images, and by all of them if this part speaks for all
    models; return query name -> judgement."""
    judged: dict[str, Judgement] = {}
    for subject in learners.values():
        judged |= judgements_of([subject], limit=fitting(GLANCE // 2, subject.held[0].choose.own.images))
    # The first images may be too few for lower bounds at the targets, which all images together reach.
    return judgements_of(learners.values()) if holds(learners.values(), judged) else judged


def _values(judged: Mapping[str, Judgement]) -> tuple[dict[str, float], dict[str, float]]:
    """Return query name -> accuracy, and query name -> relative accuracy."""
    accuracies = {query: each.accuracy for query, each in judged.items()}
    return accuracies, {query: each.relative for query, each in judged.items()}


def _met(
    learners: Mapping[str, Subject],
    judged: Mapping[str, Judgement],
    test: Callable[[Iterable[Subject], Mapping[str, Judgement]], bool] = reached,
) -> frozenset[str]:
    """Return the names of those models in ``learners`` whose queries all reach their targets by a test."""
    return frozenset(name for name, subject in learners.items() if test([subject], judged))
