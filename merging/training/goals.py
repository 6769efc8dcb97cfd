"""Decisions that joint retraining bases on measured accuracies: goals reached, loss weights, early stopping."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from .subjects import Subject

__all__ = ["is_hopeless", "loss_weights", "reached", "resting"]


def reached(subjects: Iterable[Subject], accuracies: Mapping[str, float], spare: float = 0.0) -> bool:
    """Check whether every query of some models reaches its goal, with a margin.

    Args:
        subjects: the models.
        accuracies: query name -> accuracy.
        spare: fraction (0 to 1) of each query's allowed accuracy loss that must be unused. With a target of 0.9 and a
            spare of 0.5, a query must keep 0.95 of its original accuracy.
    """
    return all(
        accuracies[held.query.name] / held.original >= held.query.target + spare * (1 - held.query.target)
        for subject in subjects
        for held in subject.held
    )


def resting(taught: Sequence[Subject], accuracies: Mapping[str, float], spare: float) -> set[str]:
    """Return the names of models that reach their goals and may train on fewer images than the others.

    The result is empty if all models reach their goals.

    Args:
        taught: the models in training.
        accuracies: query name -> accuracy.
        spare: fraction (0 to 1) of each query's allowed accuracy loss that must be unused, as in :func:`reached`.
    """
    good = {subject.name for subject in taught if reached([subject], accuracies, spare)}
    return good if len(good) < len(taught) else set()


def loss_weights(taught: Sequence[Subject], accuracies: Mapping[str, float]) -> dict[str, float]:
    """Return model name -> loss weight. A model that is further from its goals gets a larger weight.

    The mean weight is 1, so that the effective learning rate stays the same. Weights are limited to the range from
    0.25 to 4 before they are normalised, so that one model far from its goals does not silence the others.

    Args:
        taught: the models in training.
        accuracies: query name -> accuracy.
    """
    raw = {
        subject.name: max(held.goal / max(accuracies[held.query.name], 0.01) for held in subject.held) ** 4
        for subject in taught
    }
    mean = sum(raw.values()) / len(raw)
    bounded = {name: min(max(value / mean, 0.25), 4.0) for name, value in raw.items()}
    mean = sum(bounded.values()) / len(bounded)
    return {name: value / mean for name, value in bounded.items()}


def is_hopeless(taught: Sequence[Subject], history: Sequence[Mapping[str, float]], checks: int) -> bool:
    """Check whether some query would miss its goal even if its accuracy kept rising at the mean pace so far.

    A query that would miss its goal by up to 0.02 does not count. The result is False before the second measurement.

    Args:
        taught: the models in training.
        history: one mapping per measurement so far: query name -> accuracy.
        checks: number of measurements in the whole training.
    """
    if len(history) < 2:
        return False
    remaining = checks - len(history)
    for held in (held for subject in taught for held in subject.held):
        first, last = (accuracies[held.query.name] for accuracies in (history[0], history[-1]))
        gain = (last - first) / (len(history) - 1)
        if held.goal - last > max(gain, 0.0) * remaining + 0.02:
            return True
    return False
