"""Joint retraining by SGD: a shared weight is one parameter, and each model trains on its own images.

Models are trained to match their originals (knowledge distillation), so images need no labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from time import monotonic
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..forms.apply import FormCoder
from ..layers.sharing import SharingMap, Use
from ..models.trace import NORMS
from .alter import shifted
from .goals import is_hopeless, loss_weights, reached, resting
from .mixed_precision import mixed_precision
from .subjects import Judgement, Subject, fitting, in_batches, judgements_of, outputs_of

__all__ = ["GLANCE", "Fit", "Recipe", "Supervision", "TrainingProgress", "retrain", "strain"]

Supervision = Literal["teacher", "labels", "both"]
"""What a model learns from: its teacher's outputs, labels, or both, by the mean of the two losses."""


@dataclass(frozen=True)
class Recipe:
    """Settings of one joint retraining of several models."""

    steps: int
    """Length of the training: number of optimizer steps, or of epochs of the data set with most batches (``unit``)."""
    unit: Literal["steps", "epochs"] = "steps"
    rate: float = 0.02
    """Learning rate of SGD with Nesterov momentum 0.9, for batches of 64 images. Smaller batches are noisier; their
    rate is multiplied by the square root of batch size / 64 (Krizhevsky 2014)."""
    batch: int | None = None
    """Number of images of each model per training step; None for 64 images of 64 x 64 pixels, or fewer larger ones."""
    supervision: Supervision = "teacher"
    """Training target. A model without usable labels learns from its teacher."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning-rate schedule: cosine decay to 0 with a linear warm-up, or a constant rate."""
    decay: float = 5e-4
    """Weight decay of SGD (factor of the L2 penalty)."""
    checks: int = 4
    """Number of accuracy measurements during the training; they are evenly spread, and the last one is at the end."""
    spare: float = 0.0
    """Fraction (0 to 1) of each query's allowed accuracy loss that must be unused for training to stop early."""
    shifts: bool = False
    """Whether images are shifted at random, unless they have boxes that a model learns from. Training on few images for
    long gets further with it; the first steps get less far."""
    gives_up: bool = True
    """Whether training stops early when the pace so far says that some query will not reach its goal."""


@dataclass(frozen=True)
class TrainingProgress:
    """State of a joint retraining after one of its steps."""

    step: int
    """Number of the step that just ended, counted from 1."""
    steps: int
    """Number of steps in the whole training."""
    losses: dict[str, float]
    """Model name -> loss of the model's last batch."""
    accuracies: dict[str, float]
    """Query name -> accuracy at the last measurement; empty before the first measurement."""


@dataclass
class Fit:
    """Result of a joint retraining of several models."""

    samples: int = 0
    """Number of images that models were trained on, summed over models and steps."""
    ended: Literal["done", "met", "hopeless", "time", "diverged"] = "done"
    """Why training ended: all steps done, all goals met, goals out of reach, deadline passed, or loss not finite."""
    trouble: str = ""
    """Description of the failure if the training diverged; empty if it did not."""
    judgements: dict[str, Judgement] | None = None
    """Query name -> judgement by all images that choose, if training stopped because all goals were met."""


TrainingWatch = Callable[[TrainingProgress], None]

_BATCH = 64
"""Number of images of 64 x 64 pixels in a training batch; also the batch size that :attr:`Recipe.rate` is meant for."""
_MAX_NORM = 1.0
"""Maximum norm that gradients of models without BatchNorms, or with frozen statistics, are clipped to.

Without clipping, training diverges: that of an SSD-MobileNetV2 with folded BatchNorms at a rate of 0.01 in 10 steps."""
_WARM_UP = 0.1
"""Fraction of the steps in which the learning rate of the cosine schedule rises, as starting weights may be poor."""
GLANCE = 1000
"""Maximum number of own images per query to estimate accuracy on during training; at the end, all are used."""


def retrain(
    subjects: Mapping[str, Subject],
    models: Collection[str],
    recipe: Recipe,
    coder: FormCoder | None = None,
    *,
    seed: int = 0,
    deadline: float = math.inf,
    watch: TrainingWatch = lambda progress: None,
) -> Fit:
    """Retrain some models together, in place, until all queries reach their goals or all steps are done.

    Every step adds up the gradients of one batch of each model, weighted by the distance from the goals. Weights shared
    with models that are not retrained are frozen. A model that reaches its goals at a measurement trains only in every
    other step until the next measurement.

    Args:
        subjects: all models, by name, with shared parameters bound.
        models: names of the models to retrain.
        recipe: settings of the training.
        coder: weights that have a form; each step changes their plain values.
        seed: seed for the order of images and for mirroring.
        deadline: time of ``time.monotonic`` at which training stops.
        watch: function called after each step with the state of the training.
    """
    # Models that are not normalised come first: their gradients are clipped before those of the others are added.
    taught = sorted((subjects[name] for name in models), key=lambda subject: (subject.is_normalised(), subject.name))
    clipped = {subject.name for subject in taught if not subject.is_normalised()}
    rate = _rate(taught, recipe)
    groups = _parameters(subjects, models, rate)
    optimizer = torch.optim.SGD(groups, rate, momentum=0.9, weight_decay=recipe.decay, nesterov=True)
    learned = [parameter for group in groups for parameter in group["params"]]
    feeds = {subject.name: _batches(subject, recipe, seed) for subject in taught}
    noise = torch.Generator().manual_seed(seed)
    result, weights = Fit(), {subject.name: 1.0 for subject in taught}
    losses: dict[str, float] = {}
    accuracies: dict[str, float] = {}
    halved: set[str] = set()
    steps = recipe.steps
    if recipe.unit == "epochs":
        steps *= max(math.ceil(len(subject.train) / _batch(subject, recipe)) for subject in taught)
    measured = {round(steps * (index + 1) / recipe.checks) for index in range(recipe.checks)}
    history: list[dict[str, float]] = []
    for step in range(1, steps + 1):
        if monotonic() > deadline:
            result.ended = "time"
            break
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * _schedule(recipe, (step - 1) / steps)
        optimizer.zero_grad()
        learning = [subject for subject in taught if step % 2 == 0 or subject.name not in halved]
        bounded = sum(subject.name in clipped for subject in learning)
        for count, subject in enumerate(learning, 1):
            _train_mode(subject)
            indices, mirrored = next(feeds[subject.name])
            loss = _loss(subject, recipe, indices, mirrored, noise)
            losses[subject.name] = value = float(loss.detach())
            result.samples += len(indices)
            if not math.isfinite(value):
                result.ended, result.trouble = "diverged", f"{subject.name}: the loss is {value} at step {step}"
                return result
            (loss * weights[subject.name]).backward()
            if count == bounded:
                nn.utils.clip_grad_norm_(learned, _MAX_NORM)
        with coder.plain() if coder is not None else nullcontext():
            optimizer.step()
        if step in measured:
            found = judgements_of(taught, limit=GLANCE)
            accuracies = {query: each.accuracy for query, each in found.items()}
            history.append({query: each.relative for query, each in found.items()})
            weights = loss_weights(taught, history[-1])
            halved = resting(taught, found, recipe.spare)
            # Goals that are met on a subset of the images may be missed on all images.
            if reached(taught, found, recipe.spare) and reached(taught, whole := judgements_of(taught), recipe.spare):
                result.ended, result.judgements = "met", whole
            elif recipe.gives_up and step < steps and is_hopeless(taught, history, recipe.checks):
                result.ended = "hopeless"
        watch(TrainingProgress(step, steps, dict(losses), accuracies))
        if result.ended != "done":
            break
    return result


def _train_mode(subject: Subject) -> None:
    """Put a model in training mode, but keep its BatchNorm statistics frozen if its images vary too little."""
    subject.student.train()
    if subject.narrow:
        for layer in subject.model.modules():
            if isinstance(layer, NORMS):
                layer.eval()


def strain(subject: Subject, sharing: SharingMap, *, batches: int = 4, seed: int = 0) -> dict[Use, float]:
    """Return the gradient sensitivity of each weight that a model shares: how strongly the loss pulls at the weight.

    The measure is the squared norm of the weight's gradient, divided by the weight's bytes. Private copies of the
    weights with the highest values promise most accuracy for their bytes. Weights do not change; gradients are cleared.

    Args:
        subject: the model.
        sharing: the sharing map; weights of other models are ignored.
        batches: number of training batches to add up gradients over.
        seed: seed for the order of images and for mirroring.
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
        _loss(subject, Recipe(steps=1), indices, mirrored, torch.Generator()).backward()
    for use, weight in weights.items():
        if weight.grad is not None:
            pull[use] = float(weight.grad.square().sum()) / weight.nbytes
    subject.student.zero_grad()
    return pull


def _loss(subject: Subject, recipe: Recipe, indices: Tensor, mirrored: bool, noise: torch.Generator) -> Tensor:
    """Return the loss of a model on some training images, against their labels, the teacher's outputs, or both.

    Args are those of :func:`_batches` and the generator ``noise`` of random shifts.
    """
    task, image = subject.held[0].task, subject.train.batch(indices, mirrored)
    by_labels = recipe.supervision != "teacher" and task.learns_from(subject.train)
    if recipe.shifts and not (by_labels and subject.train.boxes is not None):
        image = shifted(image, noise)
    image = image.to(subject.device)
    with mixed_precision(subject.device):
        outputs = outputs_of(subject.student, image)
    if not by_labels:
        return task.distance(outputs, subject.teacher(image))
    loss = task.loss(outputs, subject.train, indices, mirrored)
    return (loss + task.distance(outputs, subject.teacher(image))) / 2 if recipe.supervision == "both" else loss


def _parameters(subjects: Mapping[str, Subject], models: Collection[str], rate: float) -> list[dict[str, Any]]:
    """Return optimizer groups with the parameters of some models, each once; freeze those that other models use too.

    A parameter that models outside ``models`` use as well is frozen and in no group. A weight that k layers share
    receives the sum of their gradients, so its learning rate is divided by the square root of k.

    Args:
        subjects: all models, by name, with shared parameters bound.
        models: names of the models to retrain.
        rate: learning rate of a weight that one layer holds.
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
    """Return a recipe's learning rate times the square root of (mean batch size of the models / 64, at most 1)."""
    images = sum(min(_batch(subject, recipe), len(subject.train)) for subject in taught) / len(taught)
    return recipe.rate * math.sqrt(min(1.0, images / _BATCH))


def _batch(subject: Subject, recipe: Recipe) -> int:
    """Return the number of images that a model trains on in one step."""
    return recipe.batch or fitting(_BATCH, subject.train)


def _batches(subject: Subject, recipe: Recipe, seed: int) -> Iterator[tuple[Tensor, bool]]:
    """Yield batches of training image indices without end, shuffled anew in every epoch, each with a flag.

    The flag tells whether to mirror the batch left to right; it is drawn at random for each batch.
    """
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(subject.train), generator=generator)
        for part in in_batches(order, _batch(subject, recipe)):
            yield part, bool(torch.randint(2, (), generator=generator))


def _schedule(recipe: Recipe, done: float) -> float:
    """Return the factor that the learning rate is multiplied by after the fraction ``done`` (0 to 1) of all steps."""
    if recipe.schedule == "constant":
        return 1.0
    return min(1.0, 0.1 + done / _WARM_UP) * (0.5 + 0.5 * math.cos(math.pi * done))
