"""Joint retraining: every shared weight is one parameter, and every model learns on its own images."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from time import monotonic
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..layers.sharing import SharingMap, Use
from ..models.trace import NORMS
from .subjects import Subject, accuracies_of, fitting, in_batches, outputs_of

__all__ = ["GLANCE", "Fit", "Recipe", "TrainingProgress", "reached", "retrain", "strain"]


@dataclass(frozen=True)
class Recipe:
    """How to retrain."""

    steps: int
    """Batches of each model, or times through the largest data set."""
    unit: Literal["steps", "epochs"] = "steps"
    rate: float = 0.02
    """Learning rate of SGD with momentum 0.9, for batches of 64 images; smaller ones are noisier, and their rate is
    lower by the square root (Krizhevsky 2014)."""
    batch: int | None = None
    """Images of each model in a step; None: as many as fit their size, 64 small ones."""
    supervision: Literal["teacher", "labels"] = "teacher"
    """What is learned; a model whose images have no labels learns from its teacher in any case."""
    schedule: Literal["cosine", "constant"] = "cosine"
    decay: float = 5e-4
    """Weight decay."""
    checks: int = 4
    """How often accuracy is looked at, the last time at the end."""
    spare: float = 0.0
    """Of the accuracy that each query may lose, the part that it must still have left for training to end early."""
    gives_up: bool = True
    """Whether training ends where what models gain will not bring them to their goals."""


@dataclass(frozen=True)
class TrainingProgress:
    """What is told after each step."""

    step: int
    steps: int
    losses: dict[str, float]
    accuracies: dict[str, float]
    """Of the last look, a query each."""


@dataclass
class Fit:
    """What became of a training."""

    samples: int = 0
    """Images that models were trained on, summed over models."""
    ended: Literal["done", "met", "hopeless", "time", "diverged"] = "done"
    trouble: str = ""
    """What went wrong, where it diverged."""
    accuracies: dict[str, float] | None = None
    """Of every query on all its held images, where these said that training may end."""


TrainingWatch = Callable[[TrainingProgress], None]

_BATCH = 64
_STEEPEST = 1.0
"""Largest norm of a gradient where BatchNorm does not measure its batches: without that, a bad start diverges."""
_WARM_UP = 0.1
"""The part of the steps in which the learning rate of the cosine schedule rises: a start may be far from good."""
GLANCE = 1000
"""Images of each query that accuracy is glanced at with; all of them decide at the end."""


def retrain(
    subjects: Mapping[str, Subject],
    models: Collection[str],
    recipe: Recipe,
    *,
    seed: int = 0,
    deadline: float = math.inf,
    watch: TrainingWatch = lambda progress: None,
) -> Fit:
    """Retrain ``models`` together, in place. Weights that they share with others stay as they are.

    A model that reaches its goals when accuracy is looked at takes part in every other step until the next look.

    Args:
        subjects: all models, with shared weights bound.
        models: which of them learn.
        recipe: how.
        seed: of the order of images.
        deadline: of ``time.monotonic``; training ends there.
        watch: told of each step.
    """
    # Gradients of narrow models are bounded before those of the others are added.
    taught = sorted((subjects[name] for name in models), key=lambda subject: (not subject.narrow, subject.name))
    rate = _rate(taught, recipe)
    groups = _parameters(subjects, models, rate)
    optimizer = torch.optim.SGD(groups, rate, momentum=0.9, weight_decay=recipe.decay, nesterov=True)
    learned = [parameter for group in groups for parameter in group["params"]]
    feeds = {subject.name: _batches(subject, recipe, seed) for subject in taught}
    result, weights = Fit(), {subject.name: 1.0 for subject in taught}
    losses: dict[str, float] = {}
    accuracies: dict[str, float] = {}
    resting: set[str] = set()
    steps = recipe.steps
    if recipe.unit == "epochs":
        steps *= max(math.ceil(len(subject.train) / _batch(subject, recipe)) for subject in taught)
    looks = {round(steps * (index + 1) / recipe.checks) for index in range(recipe.checks)}
    history: list[dict[str, float]] = []
    for step in range(1, steps + 1):
        if monotonic() > deadline:
            result.ended = "time"
            break
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * _share(recipe, (step - 1) / steps)
        optimizer.zero_grad()
        learning = [subject for subject in taught if step % 2 == 0 or subject.name not in resting]
        narrow = sum(subject.narrow for subject in learning)
        for count, subject in enumerate(learning, 1):
            _train_mode(subject)
            indices, mirrored = next(feeds[subject.name])
            loss = _loss(subject, recipe, indices, mirrored)
            losses[subject.name] = value = float(loss.detach())
            result.samples += len(indices)
            if not math.isfinite(value):
                result.ended, result.trouble = "diverged", f"{subject.name}: the loss is {value} at step {step}"
                return result
            (loss * weights[subject.name]).backward()
            if count == narrow:
                nn.utils.clip_grad_norm_(learned, _STEEPEST)
        optimizer.step()
        if step in looks:
            accuracies = accuracies_of(taught, GLANCE)
            history.append(accuracies)
            weights = _weights(taught, accuracies)
            resting = _resting(taught, accuracies, recipe.spare)
            # What holds on some images may not on all.
            if reached(taught, accuracies, recipe.spare) and reached(
                taught, whole := accuracies_of(taught), recipe.spare
            ):
                result.ended, result.accuracies = "met", whole
            elif recipe.gives_up and step < steps and _hopeless(taught, history, recipe.checks):
                result.ended = "hopeless"
        watch(TrainingProgress(step, steps, dict(losses), accuracies))
        if result.ended != "done":
            break
    return result


def _train_mode(subject: Subject) -> None:
    subject.student.train()
    if subject.narrow:
        for layer in subject.model.modules():
            if isinstance(layer, NORMS):
                layer.eval()


def strain(subject: Subject, sharing: SharingMap, *, batches: int = 4, seed: int = 0) -> dict[Use, float]:
    """How much a model pulls at each weight that it shares: the squared norm of its gradient, a byte of the weight.

    What pulls hardest for its size is what the model gains most from having to itself.
    """
    uses = [use for use in sharing.uses if use.model == subject.name]
    weights = {use: subject.model.get_parameter(use.parameter) for use in uses}
    pull = dict.fromkeys(uses, 0.0)
    subject.student.eval()
    subject.student.zero_grad()
    for parameter in weights.values():
        parameter.requires_grad_(True)
    feed = _batches(subject, Recipe(steps=1), seed)
    for _ in range(batches):
        indices, mirrored = next(feed)
        _loss(subject, Recipe(steps=1), indices, mirrored).backward()
    for use, weight in weights.items():
        if weight.grad is not None:
            pull[use] = float(weight.grad.square().sum()) / weight.nbytes
    subject.student.zero_grad()
    return pull


def _loss(subject: Subject, recipe: Recipe, indices: Tensor, mirrored: bool) -> Tensor:
    image = subject.train.batch(indices, mirrored).to(subject.device)
    with _mixed(subject.device):
        outputs = outputs_of(subject.student, image)
    task = subject.held[0].task
    if recipe.supervision == "labels" and task.learns_from(subject.train):
        return task.loss(outputs, subject.train, indices, mirrored)
    return task.distance(outputs, subject.teacher(indices, mirrored))


def _mixed(device: torch.device) -> Any:
    """bfloat16 where the device computes in it; it needs no scaling of losses."""
    if device.type == "cuda":
        return torch.autocast("cuda", torch.bfloat16, enabled=torch.cuda.is_bf16_supported())
    if torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return torch.autocast("cpu", torch.bfloat16)
    return nullcontext()


def _parameters(subjects: Mapping[str, Subject], models: Collection[str], rate: float) -> list[dict[str, Any]]:
    """Parameters of ``models`` that no other model uses, each once, with a learning rate that suits its uses.

    The gradients of a weight that many layers hold add up, and its rate is divided by the square root of their number.
    """
    others = {
        id(parameter)
        for name, subject in subjects.items()
        if name not in models
        for parameter in subject.model.parameters()
    }
    uses: dict[nn.Parameter, int] = {}
    for name in sorted(models):
        for _, parameter in subjects[name].model.named_parameters(remove_duplicate=False):
            free = id(parameter) not in others
            parameter.requires_grad_(free)
            if free:
                uses[parameter] = uses.get(parameter, 0) + 1
    by_count: dict[int, list[nn.Parameter]] = {}
    for parameter, count in uses.items():
        by_count.setdefault(count, []).append(parameter)
    return [{"params": held, "rate": rate / math.sqrt(count)} for count, held in by_count.items()]


def _rate(taught: list[Subject], recipe: Recipe) -> float:
    images = sum(min(_batch(subject, recipe), len(subject.train)) for subject in taught) / len(taught)
    return recipe.rate * math.sqrt(min(1.0, images / _BATCH))


def _batch(subject: Subject, recipe: Recipe) -> int:
    return recipe.batch or fitting(_BATCH, subject.train)


def _batches(subject: Subject, recipe: Recipe, seed: int) -> Iterator[tuple[Tensor, bool]]:
    """Indices of a shuffled data set, over and over; every other time through, images are mirrored."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(subject.train), generator=generator)
        for part in in_batches(order, _batch(subject, recipe)):
            yield part, bool(torch.randint(2, (), generator=generator))


def _share(recipe: Recipe, done: float) -> float:
    """The part of the learning rate that holds when ``done`` of all steps, from 0 to 1, are over."""
    if recipe.schedule == "constant":
        return 1.0
    return min(1.0, 0.1 + done / _WARM_UP) * (0.5 + 0.5 * math.cos(math.pi * done))


def reached(subjects: Iterable[Subject], accuracies: Mapping[str, float], spare: float = 0.0) -> bool:
    """Whether every query reaches its goal, with a part of what it may lose left over."""
    return all(
        accuracies[held.query.name] / held.original >= held.query.target + spare * (1 - held.query.target)
        for subject in subjects
        for held in subject.held
    )


def _resting(taught: list[Subject], accuracies: Mapping[str, float], spare: float) -> set[str]:
    """Models that can do with fewer images than the others, as they reach their goals."""
    good = {subject.name for subject in taught if reached([subject], accuracies, spare)}
    return good if len(good) < len(taught) else set()


def _gaps(taught: list[Subject], accuracies: Mapping[str, float]) -> dict[str, float]:
    return {held.query.name: held.goal - accuracies[held.query.name] for subject in taught for held in subject.held}


def _weights(taught: list[Subject], accuracies: Mapping[str, float]) -> dict[str, float]:
    """Models that are further from their goals count more; one on average, or the learning rate would change."""
    raw = {
        subject.name: max(held.goal / max(accuracies[held.query.name], 0.01) for held in subject.held) ** 4
        for subject in taught
    }
    mean = sum(raw.values()) / len(raw)
    bounded = {name: min(max(value / mean, 0.25), 4.0) for name, value in raw.items()}
    mean = sum(bounded.values()) / len(bounded)
    return {name: value / mean for name, value in bounded.items()}


def _hopeless(taught: list[Subject], history: list[dict[str, float]], checks: int) -> bool:
    """Whether some query would still miss its goal if it gained as much in each look to come as in the last ones."""
    if len(history) < 2:
        return False
    gaps = _gaps(taught, history[-1])
    remaining = checks - len(history)
    for query, gap in gaps.items():
        lift = (history[-1][query] - history[0][query]) / (len(history) - 1)
        if gap > max(lift, 0.0) * remaining + 0.02:
            return True
    return False
