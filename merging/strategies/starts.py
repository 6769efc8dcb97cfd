"""Choice of starting weights: evaluate several kinds of starting weights without training and compare them."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from ..layers.families import representatives
from ..layers.problem import Problem
from ..layers.sharing import SharingMap
from ..training.trial import Outcome, Start, Trial
from . import SearchSettings, Verdict

__all__ = ["LEAST_MODELS", "is_usable", "start_score", "try_starts"]

LEAST_MODELS = 2
"""Minimum number of models that must share with each other for training to be worth it, or for one more model to join.

A model that shares only with itself is not enough."""
_MOST_DONORS = 4
"""Maximum number of models that are tried as the donor of one set of models."""
_MOST_SEEN = 8
"""Maximum number of models to which starting weights are applied in order to choose between them."""
_LEAST = 0.01
"""Minimum relative accuracy (accuracy / original accuracy) of a query in the score of starting weights.

Lower accuracies are raised to the minimum, because one query with an accuracy of 0 would make all scores 0."""
_USABLE = 0.1
"""Minimum relative accuracy (accuracy / original accuracy) of a query for its model to count as usable.

With less at the starting weights, training is not expected to restore the model."""


def try_starts(
    problem: Problem, settings: SearchSettings, wanted: SharingMap, models: frozenset[str]
) -> Generator[Sequence[Trial], Sequence[Verdict], Sequence[Verdict]]:
    """Evaluate models as the donor of all shared weights, and the average of all models, without training.

    At most four models are tried as the donor, and of many models at most eight are looked at
    (:func:`.families.representatives`), so that the cost does not grow with the number of models.

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
    seen = representatives(problem, models, _MOST_SEEN)
    wanted = wanted.of(seen)
    donors = representatives(problem, seen, _MOST_DONORS)
    starts = [Start("donor", (name, *(other for other in seen if other != name))) for name in donors]
    titles = [f"donor {name}" for name in donors]
    starts.append(Start("average", seen))
    titles.append("average")
    trials = [Trial(title, wanted, frozenset(seen), start) for title, start in zip(titles, starts, strict=True)]
    verdicts: Sequence[Verdict] = yield trials
    return verdicts


def is_usable(problem: Problem, units: Sequence[frozenset[str]], looked_at: frozenset[str], start: Outcome) -> bool:
    """Check whether starting weights leave at least two units accurate enough for training to restore them.

    Args:
        problem: the layers and queries of all models.
        units: sets of models, each a single model or a family of models that share already; a unit is usable if all of
            its models are, as far as they were looked at.
        looked_at: names of the models to which the starting weights were applied.
        start: outcome of the evaluation of the starting weights.
    """

    def alive(model: str) -> bool:
        """Check whether no query of a model lost nearly all of its accuracy."""
        return all(start.relative[query] >= _USABLE for query in problem.queries.get(model, (model,)))

    # Of many models, only some were looked at.
    seen = [unit & looked_at for unit in units]
    return sum(bool(unit) and all(map(alive, unit)) for unit in seen) >= LEAST_MODELS


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
