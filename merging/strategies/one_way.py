"""One-way merging: one model or family stays exactly as it is and lends its weights; one other model is retrained.

Models that were trained independently of each other rarely meet in the middle: starting weights that all of them share
leave none usable. With one of them as a frozen donor, only the other has to adapt, with its BatchNorms, biases, heads
and all layers that the donor has no partner for. The donor loses nothing, and only one model is trained.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from ..layers.families import by_size, pair_families
from ..layers.problem import Problem
from ..layers.sharing import SharingMap
from ..training.trial import Start, Trial
from . import SearchSettings
from .joint import Phase, give_back, retrain_in_rounds

__all__ = ["one_way", "one_way_each"]


def one_way_each(
    problem: Problem, settings: SearchSettings, models: Collection[str], shared: SharingMap, least: float
) -> Phase:
    """Choose the model that has most bytes in common with the others as the donor, and retrain the others one by one.

    Args:
        problem: the layers of all models.
        settings: the user's settings.
        models: names of the models. None of them shares with another model yet.
        shared: sharing map that is committed so far.
        least: saving in bytes below which a model is not tried.
    """
    gains = {
        (donor, model): problem.saved(pair_families(problem, SharingMap(), [{donor}, {model}]))
        for donor in models
        for model in models
        if donor != model
    }
    ordered = by_size(problem, models)
    total = {donor: sum(gains[donor, model] for model in ordered if model != donor) for donor in ordered}
    # Of equal sums, the first and so the largest model is the donor.
    donor = max(ordered, key=total.__getitem__)
    for model in sorted(set(models) - {donor}, key=lambda name: (-gains[donor, name], name)):
        if gains[donor, model] >= least:
            shared = yield from one_way(problem, settings, frozenset({donor}), model, shared)
    return shared


def one_way(
    problem: Problem, settings: SearchSettings, donors: frozenset[str], model: str, shared: SharingMap
) -> Phase:
    """Retrain one model with all weights that donors can lend it, and with fewer of them while it misses its targets.

    Args:
        problem: the layers of all models.
        settings: the user's settings.
        donors: a model, or models that share already; their weights do not change.
        model: name of the model to retrain.
        shared: sharing map that is committed so far.
    """
    lent = pair_families(problem, shared, [donors, {model}])
    order = (*by_size(problem, donors), model)
    title = f"all layers of {model} from {', '.join(sorted(donors))}, unchanged"
    first = Trial(title, shared.joined(lent.slots), frozenset({model}), Start("donor", order))
    (look,) = yield [replace(first, group=f"{model} from {', '.join(sorted(donors))}")]
    if look.accepted:
        return look.sharing
    last, strain = yield from retrain_in_rounds(problem, settings, first, look.outcome.relative)
    found = last.sharing
    if found == shared:
        given = yield from give_back(problem, settings, shared, lent, model, strain)
        found = given.sharing if given is not None else shared
    return found
