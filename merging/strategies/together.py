"""The default strategy: share everything at once, retrain, then make private again only what a query needs.

Families (:mod:`gemel.merging.layers.families`) come first: models that have most of their layers in common are merged
with each other. Models that are left over form groups of their own. Then families are joined with each other where that
saves enough. Each of these groups goes through the following steps.

1. Starting weights. Up to four models are tried as the donor of all shared weights, and so is the average of all
   models with aligned channels (:mod:`gemel.merging.training.start`). Nothing is trained in this step. The starting
   weights that preserve most accuracy are taken.
2. Joint retraining. All models are retrained together by distillation, in up to three rounds, each twice as long as the
   one before, until every query meets its target with a margin. A model is left out of a round if that round is
   unlikely to bring its queries to their targets.
3. Giving back. If a query still misses its target, its model gets private copies of the weights with the highest
   gradient sensitivity per byte: an eighth of the bytes that the model shares, then a quarter, then half. Only this
   model is retrained, and shared weights are frozen, so the other models lose nothing. If half is not enough, the model
   keeps its original weights.
4. Between models only. It replaces step 3 if fewer than two models meet their targets, and step 2 if no starting
   weights leave two models usable. Steps 1 to 3 are repeated from the original weights without sharing inside models.
5. One way, if that does not help either. One model stays as it is and lends its weights to the others, which are
   retrained one by one (:mod:`.one_way`).
6. Bisection, if that does not help either. Steps 1 to 3 are repeated from the original weights for the heaviest slots
   (sets of layer weights that hold one tensor) that make up half of the saving, then for the other slots in addition.
7. Folding, if all queries meet their targets with everything shared. Cross-layer parameter sharing inside models halves
   the number of different blocks in a model, heaviest first, and all models are retrained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

from ..layers.families import by_size, find_families, pair_families
from ..layers.problem import Problem, pair_layers
from ..layers.sharing import SharingMap, Slot
from ..training.closed_form import HOPELESS
from ..training.trial import Start, Trial
from . import Search, SearchSettings
from .joint import Phase, long_recipe, merge_all
from .one_way import one_way, one_way_each
from .starts import LEAST_MODELS

__all__ = ["WORTH", "across_models", "components", "lend", "together"]

WORTH = 0.05
"""Minimum saving, as a fraction of all layers' bytes, for which some slots (sets of shared weights) are tried alone."""


def together(problem: Problem, settings: SearchSettings) -> Search:
    """Merge each family of models, then the models that are left over, then families with each other."""
    shared, alone, left = SharingMap(), frozenset[str](), frozenset[str]()
    families = find_families(problem)
    for family in families:
        if len(family) < LEAST_MODELS:
            alone |= family
            continue
        for models in components(_full_map(problem.of(family), settings, 0)):
            shared = yield from _merge_group(problem, settings, models, shared)
        left |= family - across_models(shared).models
    for models in components(_full_map(problem.of(alone | left), settings, 0)):
        # Models that fell out of one family were tried with each other when that family was merged.
        if not any(models <= family for family in families):
            shared = yield from _merge_group(problem, settings, models, shared)
    units = [*components(across_models(shared)), *(frozenset({name}) for name in sorted(alone - shared.models))]
    shared = yield from _join(problem, settings, units, shared)
    if settings.start in (None, "donor"):
        yield from lend(problem, settings, alone, shared)


def _merge_group(problem: Problem, settings: SearchSettings, models: frozenset[str], shared: SharingMap) -> Phase:
    """Merge some models with each other: all layers, otherwise part of them; then the models that are left over.

    If too few models keep their targets with layers shared inside models too, all begin anew with layers shared only
    between models: sharing inside may break a model, the donor included, that sharing between models leaves intact.

    Args:
        problem: the layers of all models.
        settings: the user's settings.
        models: names of the models. None of them shares with another model yet.
        shared: sharing map that is committed so far.
    """
    part = problem.of(models)
    wanted = shared.of(models).joined(_full_map(part, settings, 0).slots)
    shared = yield from merge_all(problem, settings, wanted, models, units=_each(models))
    folds = settings.folds
    if not _enough(models, shared) and settings.inside:
        between = shared.of(models).joined(_full_map(part, replace(settings, inside=False), 0).slots)
        if between != wanted:
            # Blocks are not halved inside models that could not share inside at all.
            wanted, folds = between, 0
            what = "all layers between models"
            shared = yield from merge_all(problem, settings, wanted, models, what, units=_each(models))
    if not _enough(models, shared) and settings.start in (None, "donor"):
        alone = models - across_models(shared).models
        shared = yield from one_way_each(problem, settings, alone, shared, WORTH * problem.bytes)
        folds = 0
    if not _enough(models, shared):
        shared = yield from _bisect(problem, settings, wanted, shared)
    else:
        for fold in range(1, folds + 1):
            before, wanted = wanted, _full_map(part, settings, fold)
            if wanted == before or not set(before.slots) <= set(shared.slots):
                break
            shared = yield from _fold(problem, settings, wanted, shared, models)
    left = models - across_models(shared).models
    if LEAST_MODELS <= len(left) < len(models):
        for group in components(_full_map(problem.of(left), settings, 0)):
            shared = yield from _merge_group(problem, settings, group, shared)
    return shared


def _each(models: frozenset[str]) -> list[frozenset[str]]:
    """Return a set of its own for each model, in the order of the alphabet."""
    return [frozenset({name}) for name in sorted(models)]


def _enough(models: frozenset[str], shared: SharingMap) -> bool:
    """Check whether at least two of some models share weights with each other."""
    return len(across_models(shared.of(models)).models) >= LEAST_MODELS


def _join(problem: Problem, settings: SearchSettings, units: Sequence[frozenset[str]], shared: SharingMap) -> Phase:
    """Let families share with each other what they have in common, if that saves enough.

    Args:
        problem: the layers of all models.
        settings: the user's settings.
        units: sets of models that share already, and single models that no family has.
        shared: sharing map that is committed so far.
    """
    between = pair_families(problem, shared, units)
    joined = shared.joined(between.slots)
    for models in components(joined):
        before = shared
        inside = [unit for unit in units if unit <= models]
        part = SharingMap(tuple(slot for slot in between.of(models).slots if not _is_hopeless(problem, inside, slot)))
        wanted = shared.of(models).joined(part.slots)
        if _gain(problem, shared, part.slots) < WORTH * problem.bytes:
            continue
        if all(len(unit) == 1 for unit in inside):
            # Models without a family were tried with each other already.
            continue
        shared = yield from merge_all(problem, settings, wanted, models, "all layers between families", units=inside)
        if shared == before:
            shared = yield from _bisect(problem, settings, part, shared)
    return shared


def _is_hopeless(problem: Problem, units: Sequence[frozenset[str]], slot: Slot) -> bool:
    """Check whether the closed form says that families cannot share a slot (set of layer weights), before any training.

    Args:
        problem: the layers of all models, and perhaps their closed-form errors.
        units: sets of models that share already; one layer of each is compared.
        slot: weights of layers of several units.
    """
    if problem.joint_error is None:
        return False
    of_each = [next((use for use in slot if use.model in unit), None) for unit in units]
    error = problem.joint_error(tuple(use for use in of_each if use is not None))
    return error is not None and error > HOPELESS


def lend(
    problem: Problem,
    settings: SearchSettings,
    alone: frozenset[str],
    shared: SharingMap,
    singles: Sequence[frozenset[str]] = (),
) -> Phase:
    """Let each model without a family take weights of the family with which it has most bytes in common.

    Args:
        problem: the layers of all models.
        settings: the user's settings.
        alone: names of the models that no family has.
        shared: sharing map that is committed so far.
        singles: models that share with nobody and may lend their weights, each a set of its own.
    """
    for model in sorted(alone - across_models(shared).models):
        units = [*components(across_models(shared)), *singles]
        gains = [_gain(problem, shared, pair_families(problem, shared, [unit, {model}]).slots) for unit in units]
        if units and max(gains) >= WORTH * problem.bytes:
            shared = yield from one_way(problem, settings, units[gains.index(max(gains))], model, shared)
    return shared


def _bisect(problem: Problem, settings: SearchSettings, wanted: SharingMap, shared: SharingMap) -> Phase:
    """Share the heaviest slots (sets of layer weights that hold one tensor) with half of the saving, then the rest.

    A half that adds no committed sharing between models is bisected again.

    Args:
        problem: the layers of all models.
        settings: the user's settings.
        wanted: sharing map that too few models could keep.
        shared: sharing map that is committed so far.
    """
    heaviest = _heaviest(wanted.slots, [_gain(problem, shared, (slot,)) for slot in wanted.slots])
    if len(heaviest) == len(wanted.slots):
        return shared
    rest = [slot for slot in wanted.slots if slot not in heaviest]
    for slots, what in ((heaviest, "heaviest"), (rest, "lighter")):
        for models in components(half := SharingMap().joined(slots)):
            part = half.of(models)
            if _gain(problem, shared, part.slots) < WORTH * problem.bytes:
                continue
            # Models that share committed weights with these must train too, as they hold the same tensors.
            tied = shared.tied(models)
            before, joined = shared, shared.of(tied).joined(part.slots)
            shared = yield from merge_all(problem, settings, joined, tied, f"the {len(part.slots)} {what} layers")
            if across_models(shared.of(models)) == across_models(before.of(models)):
                shared = yield from _bisect(problem, settings, part, shared)
    return shared


def _gain(problem: Problem, shared: SharingMap, slots: Sequence[Slot]) -> int:
    """Return the bytes that more slots (sets of layer weights that hold one tensor) free beside those of a map."""
    return problem.saved(shared.joined(slots)) - problem.saved(shared)


def across_models(sharing: SharingMap) -> SharingMap:
    """Return a sharing map with only those slots (sets of weights that hold one tensor) that join several models."""
    return SharingMap(tuple(slot for slot in sharing.slots if len({use.model for use in slot}) > 1))


def _full_map(problem: Problem, settings: SearchSettings, folds: int) -> SharingMap:
    """Return the sharing map that shares all shareable layers, with the different blocks halved ``folds`` times."""
    return SharingMap().joined(slot for _, slot in pair_layers(problem, inside=settings.inside, folds=folds))


def components(sharing: SharingMap) -> list[frozenset[str]]:
    """Return the sets of models that shared weights connect, directly or through other models."""
    found: list[frozenset[str]] = []
    for slot in sharing.slots:
        if not any(slot[0].model in component for component in found):
            found.append(sharing.tied({slot[0].model}))
    return found


def _fold(
    problem: Problem, settings: SearchSettings, wanted: SharingMap, shared: SharingMap, models: frozenset[str]
) -> Phase:
    """Halve the number of different blocks inside models, first for half of the saving, then for all of it.

    Each of the two steps is one trial. The second trial is left out if the first one fails.

    Args:
        problem: the layers of all models.
        settings: the user's settings.
        wanted: sharing map with the number of different blocks halved.
        shared: sharing map that is committed so far.
        models: names of the models in ``wanted``.
    """
    new = [slot for slot in wanted.slots if slot not in shared.slots]
    heaviest = _heaviest(new, [_gain(problem, shared, (slot,)) for slot in new])
    for slots, what in ((heaviest, "the heaviest blocks halved"), (new, "all blocks halved")):
        title = f"{what} in {', '.join(sorted(models))}"
        start = Start("donor", by_size(problem, models))
        (verdict,) = yield [Trial(title, shared.joined(slots), models, start, long_recipe(settings))]
        shared = verdict.sharing
        if not verdict.accepted or len(slots) == len(new):
            break
    return shared


def _heaviest(slots: Sequence[Slot], savings: Sequence[int]) -> list[Slot]:
    """Return the fewest slots (sets of layer weights that hold one tensor) that make up half of all savings."""
    ranked = sorted(zip(savings, slots, strict=True), key=lambda each: (-each[0], each[1]))
    sums = list(accumulate(saving for saving, _ in ranked))
    count = next(count for count, saved in enumerate(sums, 1) if saved >= sums[-1] / 2)
    return [slot for _, slot in ranked[:count]]
