"""Choice of starting weights: evaluate several starts without training and compare them."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from ..layers.problem import Problem
from ..layers.sharing import SharingMap
from ..training.trial import Outcome, Start, Trial
from . import SearchSettings, Verdict

__all__ = ["LEAST_MODELS", "by_size", "is_usable", "start_score", "try_starts"]

LEAST_MODELS = 2
"""Smallest group of models worth training or joining; a model that shares only with itself is no group."""
_LEAST = 0.01
"""Smallest relative accuracy that a start is scored with: one query at zero would make all scores equal."""
_USABLE = 0.1
"""Smallest relative accuracy of a start from which training is expected to bring a model back."""


def by_size(problem: Problem, models: frozenset[str]) -> tuple[str, ...]:
    """Return model names by number of layers, largest first; models of one size come in the order of their names."""
    # A set has another order in every process, and a search must repeat.
    return tuple(sorted(models, key=lambda name: (-len(problem.layers[name]), name)))


def try_starts(
    problem: Problem, settings: SearchSettings, wanted: SharingMap, models: frozenset[str]
) -> Generator[Sequence[Trial], Sequence[Verdict], Sequence[Verdict]]:
    """Evaluate each model as the donor of all shared weights, and the average of all models, without training.

    Args:
        problem: the layers of all models.
        settings: the user's settings; with ``first`` or ``average`` as the start there is nothing to choose.
        wanted: the sharing that the starting weights are for.
        models: names of the models in ``wanted``.

    Returns:
        A verdict on each start, none if there is nothing to choose.
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
    """Check whether starting weights leave at least two models with accuracy to train back from.

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
    """Return the weighted product of the queries' relative accuracies at a start, to compare starts.

    In a product, a query that keeps little counts most. A deep model recovers more in training, as it has more
    BatchNorms to adapt, so it counts less: the exponent of a query is the square of the ratio of the shallowest model's
    number of layers to its own model's.

    Args:
        problem: the layers and queries of all models.
        wanted: the sharing that the starting weights are for.
        start: outcome of the evaluation of the starting weights.
    """
    fewest = min(len(problem.layers[model]) for model in wanted.models)
    product = 1.0
    for model in sorted(wanted.models):
        for query in problem.queries.get(model, (model,)):
            kept = min(max(start.relative[query], _LEAST), 1.0)
            product *= kept ** (fewest / len(problem.layers[model])) ** 2
    return product
