"""Decisions that joint retraining bases on measured accuracies: goals reached, loss weights, early stopping."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from .subjects import Judgement, Subject

__all__ = ["holds", "is_hopeless", "loss_weights", "reached", "resting"]


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

    The mean weight is 1, so that the effective learning rate stays the same. Weights are limited to the range from
    0.25 to 4 before they are normalised, so that one model far from its goals does not silence the others.

    Args:
        taught: the models in training.
        relative: query name -> accuracy / original model's accuracy.
    """
    raw = {
        subject.name: max(held.query.target / max(relative[held.query.name], 0.01) for held in subject.held) ** 4
        for subject in taught
    }
    mean = sum(raw.values()) / len(raw)
    bounded = {name: min(max(value / mean, 0.25), 4.0) for name, value in raw.items()}
    mean = sum(bounded.values()) / len(bounded)
    return {name: value / mean for name, value in bounded.items()}


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
