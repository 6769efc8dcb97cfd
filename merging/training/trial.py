"""A trial: one sharing map tried out, from a start, through retraining, to the accuracies it reaches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Literal

import torch
from torch import Tensor, nn

from ..layers.sharing import SharingMap, Slot, Use, bind, own_parameters, release
from .align import align
from .start import average, donate, refit_heads, reset_statistics
from .subjects import State, Subject, accuracies_of, fitting, in_batches
from .training import GLANCE, Recipe, TrainingProgress, reached, retrain, strain

__all__ = ["STATISTICS_IMAGES", "Outcome", "Start", "Trial", "TrialRunner", "some"]

STATISTICS_IMAGES = 1280
"""That BatchNorm statistics are measured on."""
_HEAD_IMAGES = 2000
_HEAD_ROWS = 20000
_START_BATCH = 128
_LOOK = 4
"""By what a start that is only to be compared with others needs fewer images."""


@dataclass(frozen=True)
class Start:
    """The first weights of what is shared anew.

    ``donor``: those of the first model in ``order``, with its BatchNorm, statistics measured anew and heads refitted;
    ``first``: the weights alone of the first model in ``order``, as the paper's published code has it; ``average``:
    their mean, with the channels of each model in the order that makes them most like those before it, statistics
    measured anew and heads refitted; ``keep``: nothing is new.
    """

    kind: Literal["donor", "first", "average", "keep"] = "donor"
    order: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trial:
    """What to try. Models that do not learn keep their weights, also those that they share."""

    group: str
    """What is shared anew, in words."""
    sharing: SharingMap
    """All that is shared if it succeeds."""
    learners: frozenset[str]
    start: Start = Start()
    recipe: Recipe | None = None
    """None: the start alone is looked at."""
    base: Literal["committed", "last"] = "committed"
    """The weights that it goes on from: those of the last commit, or of the last trial that trained."""


@dataclass(frozen=True)
class Outcome:
    """What a trial led to."""

    accuracies: dict[str, float]
    """Of every query of the learners: on all its held images after training, on some where a start is not enough."""
    relative: dict[str, float]
    """The same, divided by those of the original models."""
    met: frozenset[str]
    """Learners all of whose queries reach their goals."""
    samples: int
    seconds: float
    ended: str
    """Why training ended: done, met, hopeless, time, start (there was none), or what went wrong."""
    strain: dict[Use, float] = field(default_factory=dict)
    """Where not all learners reach their goals: how much each shared weight is pulled away from where it is."""
    states: dict[str, State] = field(default_factory=dict)
    """Weights of the learners afterwards."""


class TrialRunner:
    """Runs trials, one after the other, on the same modules.

    Args:
        subjects: the models of the workload by name.
        seed: of everything random.
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
        """Run a trial.

        Args:
            trial: what to try.
            states: weights of all models to go on from.
            shared: what they share already.
            deadline: of ``time.monotonic``.
            watch: told of each training step.
        """
        try:
            with _seeded(self._seed, self.subjects.values()):
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
        began = monotonic()
        learners = {name: self.subjects[name] for name in sorted(trial.learners)}
        for name, subject in self.subjects.items():
            subject.restore(states[name])
        self._begin(trial, learners, shared)
        accuracies = accuracies_of(learners.values(), GLANCE if trial.recipe is not None else GLANCE // 2)
        if _met(learners, accuracies) == trial.learners:
            accuracies = accuracies_of(learners.values())
        met = _met(learners, accuracies)
        samples, ended = 0, "start"
        strained: dict[Use, float] = {}
        if trial.recipe is not None and not reached(learners.values(), accuracies, trial.recipe.spare):
            result = retrain(
                self.subjects, trial.learners, trial.recipe, seed=self._seed, deadline=deadline, watch=watch
            )
            samples, ended = result.samples, result.trouble or result.ended
            if result.trouble:
                # Nothing can be done with these weights; accuracies are those of the start.
                relative = _relative(learners, accuracies)
                return Outcome(accuracies, relative, frozenset(), samples, monotonic() - began, ended)
            accuracies = result.accuracies or accuracies_of(learners.values())
            met = _met(learners, accuracies)
            if ended == "done" and reached(learners.values(), accuracies, trial.recipe.spare):
                # What some images did not show.
                ended = "met"
            if met < trial.learners:
                for subject in learners.values():
                    strained |= strain(subject, trial.sharing, seed=self._seed)
        found = {name: subject.state() for name, subject in learners.items()}
        relative = _relative(learners, accuracies)
        return Outcome(accuracies, relative, met, samples, monotonic() - began, ended, strained, found)

    def _begin(self, trial: Trial, learners: Mapping[str, Subject], shared: SharingMap) -> None:
        known = set(shared.slots)
        new = [slot for slot in trial.sharing.slots if slot not in known]
        start = trial.start
        # A model that does not learn keeps its weights: it comes first where some are chosen.
        fixed = tuple(name for name in self.subjects if name not in learners)
        changed: frozenset[str] = frozenset()
        if start.kind == "average":
            free = [slot for slot in new if not any(use.model in fixed for use in slot)]
            self._align(free, start.order, shared.models)
            average(self.subjects, free)
            new = [slot for slot in new if slot not in free]
            changed = SharingMap(tuple(free)).models
        if start.kind != "keep":
            changed |= donate(self.subjects, new, (*fixed, *start.order, *learners), norms=start.kind == "donor")
        bind(self._modules, trial.sharing)
        if start.kind in ("donor", "average"):
            part = 1 if trial.recipe is not None else _LOOK
            # A donor that is given nothing is as good as it can be.
            for subject in (learners[name] for name in learners if name in changed):
                if not subject.narrow:
                    reset_statistics(subject, some(subject, STATISTICS_IMAGES // part, self._seed))
                images = min(fitting(_HEAD_IMAGES // part, subject.train), len(subject.train))
                rows = _HEAD_ROWS // math.ceil(images / fitting(_START_BATCH, subject.train))
                refit_heads(subject, some(subject, _HEAD_IMAGES // part, self._seed), rows)

    def _align(self, slots: Sequence[Slot], order: Sequence[str], still: frozenset[str]) -> None:
        """Reorder channels of each model but those that are to stand still, to be like the models before it."""
        for place, name in enumerate(order):
            pairs = []
            for slot in slots:
                before = [use for use in slot if use.model in order[:place]]
                first = min(before, key=lambda use: order.index(use.model), default=None)
                if first is not None and name not in still:
                    pairs += [(self._weight(first), self._weight(use)) for use in slot if use.model == name]
            if pairs:
                align(self.subjects[name], next(some(self.subjects[name], 1, self._seed)), pairs)

    def _weight(self, use: Use) -> nn.Parameter:
        return self._modules[use.model].get_parameter(use.parameter)


def some(subject: Subject, count: int, seed: int) -> Iterator[Tensor]:
    """Random training images, ``count`` small ones or fewer large ones, in batches of nearly one size."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(subject.train), generator=generator)[: fitting(count, subject.train)]
    for part in in_batches(order, fitting(_START_BATCH, subject.train)):
        yield subject.train.batch(part).to(subject.device)


@contextmanager
def _seeded(seed: int, subjects: Iterable[Subject]) -> Iterator[None]:
    """Dropout and its like draw the same numbers whatever ran before; the caller's generator stays as it is."""
    devices = {subject.device for subject in subjects if subject.device.type == "cuda"}
    with torch.random.fork_rng(devices, device_type="cuda"):
        torch.manual_seed(seed)
        yield


def _relative(learners: Mapping[str, Subject], accuracies: Mapping[str, float]) -> dict[str, float]:
    held = [each for subject in learners.values() for each in subject.held]
    return {each.query.name: accuracies[each.query.name] / each.original for each in held}


def _met(learners: Mapping[str, Subject], accuracies: Mapping[str, float]) -> frozenset[str]:
    return frozenset(name for name, subject in learners.items() if reached([subject], accuracies))
