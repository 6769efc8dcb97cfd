"""Choice of starting weights: evaluate several kinds of starting weights without training and compare them."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from ..layers.problem import Problem
from ..layers.sharing import SharingMap
from ..training.trial import Outcome, Start, Trial
from . import SearchSettings, Verdict

__all__ = ["LEAST_MODELS", "by_size", "is_usable", "start_score", "try_starts"]

LEAST_MODELS = 2
"""Minimum number of models that must share with each other for training to be worth it, or for one more model to join.

A model that shares only with itself is not enough."""
_LEAST = 0.01
"""Minimum relative accuracy (accuracy / original accuracy) of a query in the score of starting weights.

Lower accuracies are raised to the minimum, because one query with an accuracy of 0 would make all scores 0."""
_USABLE = 0.1
"""Minimum relative accuracy (accuracy / original accuracy) of a query for its model to count as usable.

With less at the starting weights, training is not expected to restore the model."""


def by_size(problem: Problem, models: frozenset[str]) -> tuple[str, ...]:
    """Return model names by number of layers, largest first; models with equally many layers are ordered by name."""
    # The order of a set differs from process to process, but a repeated search must make the same trials.
    return tuple(sorted(models, key=lambda name: (-len(problem.layers[name]), name)))


def try_starts(
    problem: Problem, settings: SearchSettings, wanted: SharingMap, models: frozenset[str]
) -> Generator[Sequence[Trial], Sequence[Verdict], Sequence[Verdict]]:
    """Evaluate each model as the donor of all shared weights, and the average of all models, without training.

    Args:
        problem: the layers of all models.
        settings: the user's settings; if they fix the start as ``first`` or ``average``, there is nothing to choose.
        wanted: the sharing map that the starting weights are for.
        models: names of the models in ``wanted``.

    Returns:
        One verdict for each donor and one for the average; empty if there is nothing to choose.
    """
    if settings.start in ("first", "average"):
        return []
    ordered = by_size(problem, models)
    starts = [Start("donor", (name, *(other for other in ordered if other != name))) for name in ordered]
    titles = [f"donor {name}" for name in ordered]
    starts.append(Start("average", ordered))
    titles.append("average")
    trials = [Trial(title, wanted, models, start) for title, start in zip(titles, starts, strict=True)]
    verdicts: Sequence[Verdict] = yield trials
    return verdicts


def is_usable(problem: Problem, models: frozenset[str], start: Outcome) -> bool:
    """Check whether starting weights leave at least two models accurate enough for training to restore them.

    Args:
        problem: the layers and queries of all models.
        models: names of the models to consider.
        start: outcome of the evaluation of the starting weights.
    """
    alive = [
        model
        for model in models
        if all(start.relative[query] >= _USABLE for query in problem.queries.get(model, (model,)))
    ]
    return len(alive) >= LEAST_MODELS


def start_score(problem: Problem, wanted: SharingMap, start: Outcome) -> float:
    """Return a score of starting weights: the weighted product of the queries' relative accuracies.

    The relative accuracy is the accuracy divided by the original model's accuracy. In a product, a query that keeps
    little accuracy counts most. A deep model recovers more in training, because it has more BatchNorms to adapt, so its
    queries count less: the exponent of a query is ``(a / b) ** 2``, where ``a`` is the number of layers of the
    shallowest model and ``b`` the number of layers of the query's model.

    Args:
        problem: the layers and queries of all models.
        wanted: the sharing map that the starting weights are for.
        start: outcome of the evaluation of the starting weights.
    """
    fewest = min(len(problem.layers[model]) for model in wanted.models)
    product = 1.0
    for model in sorted(wanted.models):
        for query in problem.queries.get(model, (model,)):
            kept = min(max(start.relative[query], _LEAST), 1.0)
            product *= kept ** (fewest / len(problem.layers[model])) ** 2
    return product
