"""Decisions that joint retraining bases on measured accuracies: goals reached, loss weights, early stopping."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from .subjects import Judgement, Subject

__all__ = ["holds", "is_hopeless", "loss_weights", "reached", "resting"]

_LEAST_ALLOWED = 0.01
"""Least loss of accuracy that loss weights are relative to; a target of 1 allows none."""


def holds(subjects: Iterable[Subject], judgements: Mapping[str, Judgement]) -> bool:
    """Check whether every query of some models has a relative accuracy at its target, whatever its lower bound is.

    By this a model stays that was confirmed once: few new images have low bounds, however right it is on them.

    Args:
        subjects: the models.
        judgements: query name -> judgement.
    """
    held = (held.query for subject in subjects for held in subject.held)
    return all(judgements[query.name].relative >= query.target for query in held)


def reached(subjects: Iterable[Subject], judgements: Mapping[str, Judgement], spare: float = 0.0) -> bool:
    """Check whether every query of some models reaches its target by its lower bounds, and with a margin by its value.

    Args:
        subjects: the models.
        judgements: query name -> judgement.
        spare: fraction (0 to 1) of each query's allowed accuracy loss that must be unused. With a target of 0.9 and a
            spare of 0.5, a query must keep 0.95 of its original accuracy.
    """
    found = [(judgements[held.query.name], held.query.target) for subject in subjects for held in subject.held]
    return all(
        judgement.passes(target) and judgement.relative >= target + spare * (1 - target) for judgement, target in found
    )


def resting(taught: Sequence[Subject], judgements: Mapping[str, Judgement], spare: float) -> set[str]:
    """Return the names of models that reach their goals and may train on fewer images than the others.

    The result is empty if all models reach their goals.

    Args:
        taught: the models in training.
        judgements: query name -> judgement.
        spare: fraction (0 to 1) of each query's allowed accuracy loss that must be unused, as in :func:`reached`.
    """
    good = {subject.name for subject in taught if reached([subject], judgements, spare)}
    return good if len(good) < len(taught) else set()


def loss_weights(taught: Sequence[Subject], relative: Mapping[str, float]) -> dict[str, float]:
    """Return model name -> loss weight. A model that is further from its goals gets a larger weight.

    Weights are proportional to ``exp(x)``: ``x`` says how far a model's worst query is below its target, as a part
    of the loss of accuracy that the target allows. It is limited to the range from -1 to 1, so that one model far from
    its goals does not silence the others. The mean weight is 1, so that the effective learning rate stays the same.

    Args:
        taught: the models in training.
        relative: query name -> accuracy / original model's accuracy.
    """
    raw = {
        subject.name: max(_shortfall(held.query.target, relative[held.query.name]) for held in subject.held)
        for subject in taught
    }
    weights = {name: math.exp(min(max(value, -1.0), 1.0)) for name, value in raw.items()}
    mean = sum(weights.values()) / len(weights)
    return {name: value / mean for name, value in weights.items()}


def _shortfall(target: float, relative: float) -> float:
    """Return how far a relative accuracy is below its target, in units of the loss that the target allows."""
    return (target - relative) / max(1 - target, _LEAST_ALLOWED)


def is_hopeless(taught: Sequence[Subject], history: Sequence[Mapping[str, float]], checks: int) -> bool:
    """Check whether some query would miss its target even if its accuracy kept rising at the mean pace so far.

    A query that would miss its target by up to 0.02 does not count. The result is False before the second measurement.

    Args:
        taught: the models in training.
        history: one mapping per measurement so far: query name -> accuracy / original model's accuracy.
        checks: number of measurements in the whole training.
    """
    if len(history) < 2:
        return False
    remaining = checks - len(history)
    for held in (held for subject in taught for held in subject.held):
        first, last = (relative[held.query.name] for relative in (history[0], history[-1]))
        gain = (last - first) / (len(history) - 1)
        if held.query.target - last > max(gain, 0.0) * remaining + 0.02:
            return True
    return False
