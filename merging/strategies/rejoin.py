"""Go on from an earlier merge: models that miss their targets on new images leave it, and try to join again.

No model but one that left is ever retrained, so the answers of all others stay as they are, bit for bit.

1. Every merged model is judged again by all images, those that confirm included. Whoever reaches its targets is left
   alone.
2. The others get their original weights; what they shared is private to the models that stay.
3. One after the other, each of these models tries to join again: as differences to its family's base, without
   training; with all that it shared before, from its merged weights, at first with new BatchNorm statistics and heads
   only, then trained alone, then with fewer shared weights; and where the models that it shared with have left as well,
   with what other models can lend it. A model that does not reach its targets so keeps its original weights.
4. Models whose partners have all left are merged with each other, one way (:mod:`.one_way`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..forms.form_map import FormMap
from ..layers.families import by_size
from ..layers.problem import Problem
from ..layers.sharing import SharingMap, Slot
from ..training.trial import Start, Trial
from . import Search, SearchSettings
from .cheapest_forms import FormCosts, keep_differences
from .joint import Phase, give_back, short_recipe
from .one_way import one_way_each
from .starts import LEAST_MODELS
from .together import WORTH, across_models, lend

__all__ = ["AGAIN", "Earlier", "rejoin"]

AGAIN = "judged again"
"""Ending of the titles of trials that judge the models of an earlier merge."""


@dataclass(frozen=True)
class Earlier:
    """What a search goes on from."""

    sharing: SharingMap
    """Sharing map of the earlier merge."""
    forms: FormMap
    """Forms of the earlier merge."""
    models: frozenset[str]
    """Names of the models that have merged weights."""


def rejoin(problem: Problem, settings: SearchSettings, costs: FormCosts, earlier: Earlier) -> Search:
    """Judge the models of an earlier merge again, and let those that miss their targets join again.

    Args:
        problem: the layers of all models.
        settings: the user's settings.
        costs: errors of the forms that weights can have.
        earlier: what the search goes on from.
    """
    models = by_size(problem, earlier.models)
    if not models:
        return
    looks = yield [
        Trial(f"{name}, {AGAIN}", SharingMap(), frozenset({name}), Start("keep"), measure=True, again=True)
        for name in models
    ]
    relative = {
        name: look.outcome.relative for name, look in zip(models, looks, strict=True) if name not in look.outcome.met
    }
    if not relative:
        return
    fallen = tuple(relative)
    title = f"original weights of {', '.join(fallen)}"
    (verdict,) = yield [Trial(title, SharingMap(), frozenset(fallen), Start("keep"), base="original", release=True)]
    shared, forms = verdict.sharing, verdict.forms
    stays = earlier.models - relative.keys()
    alone = frozenset[str]()
    for name in fallen:
        for family in costs.families if settings.differences else ():
            if name in family and name not in forms.models:
                forms = yield from keep_differences(problem, {name: family[name]}, forms, shared)
        if name in forms.models or not settings.retrain:
            continue
        before = shared.joined(_slots_with(name, earlier.sharing.of({*stays, name})))
        if name in across_models(before).models:
            shared = yield from _as_before(problem, settings, before, name, shared, relative[name])
        else:
            alone |= {name}
    for name in sorted(alone):
        units = [frozenset({other}) for other in sorted(stays - across_models(shared).models)]
        shared = yield from lend(problem, settings, frozenset({name}), shared, units)
    alone -= shared.models
    if len(alone) >= LEAST_MODELS:
        yield from one_way_each(problem, settings, alone, shared, WORTH * problem.bytes)


def _as_before(
    problem: Problem,
    settings: SearchSettings,
    before: SharingMap,
    model: str,
    shared: SharingMap,
    relative: Mapping[str, float],
) -> Phase:
    """Retrain one model from its merged weights, with what it shared before, and with less while it misses its targets.

    Args:
        problem: the layers of all models.
        settings: the user's settings.
        before: sharing map in which the model shares as before.
        model: name of the model.
        shared: sharing map that is committed so far.
        relative: query -> relative accuracy of the model with its merged weights.
    """
    title = f"{model} as before, from its merged weights"
    first = Trial(title, before, frozenset({model}), Start("refit"), base="earlier")
    (look,) = yield [first]
    if look.accepted:
        return look.sharing
    if min(look.outcome.relative.values()) < min(relative.values()):
        first = replace(first, start=Start("keep"))
    # One short round only: what it does not bring back, fewer shared weights do sooner than longer training.
    (verdict,) = yield [replace(first, recipe=short_recipe(settings))]
    if verdict.accepted:
        return verdict.sharing
    wanted = SharingMap(tuple(_slots_with(model, before)))
    strain, again = verdict.outcome.strain, short_recipe(settings)
    given = yield from give_back(problem, settings, shared, wanted, model, strain, again=again)
    return given.sharing if given is not None else shared


def _slots_with(model: str, sharing: SharingMap) -> list[Slot]:
    """Return the sets of weights that hold one tensor, of a sharing map, in which a model has a weight."""
    return [slot for slot in sharing.slots if any(use.model == model for use in slot)]
