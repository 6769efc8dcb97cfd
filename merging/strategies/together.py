"""The default strategy: share everything at once, retrain, then make private again only what a query needs.

1. Starting weights. Each model in turn is tried as the donor of all shared weights, and so is the average of all models
   with aligned channels (:mod:`gemel.merging.training.start`). Nothing is trained for that. The start that preserves
   most accuracy is taken.
2. Joint retraining. All models are retrained together from there by distillation, in up to three rounds, each twice as
   long as the one before, until every query meets its target with a margin. A model that one more round promises too
   little for is left out of that round.
3. Giving back. If a query still misses its target, its model gets private copies of the weights with the highest
   gradient sensitivity per byte: an eighth of the bytes that it shares, then a quarter, then half. Only this model is
   retrained, beside frozen shared weights, so the other models lose nothing. If half is not enough, the model keeps its
   original weights.
4. Bisection, instead of step 3 where fewer than two models meet their targets, and instead of step 2 where no start
   leaves two models usable. Steps 1 to 3 are repeated from the original weights for the heaviest slots that save half
   as much, then for the rest on top of them.
5. Folding, if all queries meet their targets with everything shared. Cross-layer parameter sharing inside models halves
   the number of their different blocks, heaviest first, and all models are retrained.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

from ..layers.problem import Problem, pair_layers
from ..layers.sharing import SharingMap, Slot, Use
from ..training.training import Recipe
from ..training.trial import Start, Trial
from . import Search, SearchSettings, Verdict
from .starts import LEAST_MODELS, by_size, is_usable, start_score, try_starts

__all__ = ["together"]

_Phase = Generator[Sequence[Trial], Sequence[Verdict], SharingMap]
"""A phase of the search; it returns all committed sharing at its end."""
_RATE = 0.02
"""Learning rate for batches of 64 images."""
_ROUNDS = 3
"""Rounds of joint retraining at most."""
_SPARE = 0.5
"""Part of the allowed accuracy loss that must be unused before training stops, as tomorrow's images will differ."""
_ENDED = ("start", "met")
"""Values of :attr:`.Outcome.ended` after which another round is useless."""
_WORTH = 0.05
"""Smallest saving for which a part of the slots is tried alone, as a part of the bytes of all layers."""
_GIVEN_BACK = (1 / 8, 1 / 4, 1 / 2)
"""Parts of a model's shared bytes that become private, one attempt after the other."""


def together(problem: Problem, settings: SearchSettings) -> Search:
    """Search each set of models that can share weights with each other. The module's docstring has the algorithm."""
    everything = _full_map(problem, settings, 0)
    for models in _components(everything):
        wanted = everything.of(models)
        shared = yield from _merge(problem, settings, wanted, models, usable=True)
        if len(models & shared.models) < LEAST_MODELS:
            yield from _bisect(problem, settings, wanted, shared)
            continue
        for folds in range(1, settings.folds + 1):
            before, wanted = wanted, _full_map(problem, settings, folds).of(models)
            if wanted == before or not set(before.slots) <= set(shared.slots):
                break
            shared = yield from _fold(problem, settings, wanted, shared, models)


def _bisect(problem: Problem, settings: SearchSettings, wanted: SharingMap, shared: SharingMap) -> _Phase:
    """Share the heaviest slots that save half of ``wanted``, then the rest; bisect a half again if nothing comes of it.

    Args:
        problem: the layers of all models.
        settings: the user's settings.
        wanted: sharing that too few models could keep.
        shared: all committed sharing.
    """
    heaviest = _heaviest(wanted.slots, [problem.saved(SharingMap((slot,))) for slot in wanted.slots])
    if len(heaviest) == len(wanted.slots):
        return shared
    rest = [slot for slot in wanted.slots if slot not in heaviest]
    for slots, what in ((heaviest, "heaviest"), (rest, "lighter")):
        for models in _components(half := SharingMap().joined(slots)):
            part = half.of(models)
            if problem.saved(part) < _WORTH * problem.bytes:
                continue
            before, joined = shared, shared.of(models).joined(part.slots)
            shared = yield from _merge(problem, settings, joined, models, f"the {len(part.slots)} {what} layers")
            if _across_models(shared.of(models)) == _across_models(before.of(models)):
                shared = yield from _bisect(problem, settings, part, shared)
    return shared


def _across_models(sharing: SharingMap) -> SharingMap:
    """Return the slots of a sharing map that hold weights of several models."""
    return SharingMap(tuple(slot for slot in sharing.slots if len({use.model for use in slot}) > 1))


def _full_map(problem: Problem, settings: SearchSettings, folds: int) -> SharingMap:
    """Return the map that shares every layer it can, with the blocks inside models halved ``folds`` times."""
    return SharingMap().joined(slot for _, slot in pair_layers(problem, inside=settings.inside, folds=folds))


def _components(sharing: SharingMap) -> list[frozenset[str]]:
    """Return the connected components of the graph of models, in which shared weights are the edges."""
    found: list[frozenset[str]] = []
    for slot in sharing.slots:
        if not any(slot[0].model in component for component in found):
            found.append(sharing.tied({slot[0].model}))
    return found


def _merge(
    problem: Problem,
    settings: SearchSettings,
    wanted: SharingMap,
    models: frozenset[str],
    what: str = "all layers",
    *,
    usable: bool = False,
) -> _Phase:
    """Merge one connected component of models: starting weights, joint retraining, giving back.

    Args:
        problem: the layers of all models.
        settings: the user's settings.
        wanted: sharing to reach.
        models: names of the models in ``wanted``.
        what: the layers in ``wanted``, for titles.
        usable: whether to give up before training if the best start leaves fewer than two models usable.
    """
    tried = yield from try_starts(problem, settings, wanted, models)
    best = max(tried, key=lambda verdict: start_score(problem, wanted, verdict.outcome), default=None)
    if any(verdict.accepted for verdict in tried) or (
        best is not None and usable and not is_usable(problem, models, best.outcome)
    ):
        return tried[-1].sharing
    start = best.trial.start if best else Start(settings.start or "first", by_size(problem, models))
    first = Trial(f"{what} of {', '.join(sorted(models))}", wanted, models, start)
    shared, strain = yield from _rounds(problem, settings, first, best.outcome.relative if best else {})
    for model in sorted(models - shared.models):
        done = models & shared.models
        if len(done) < LEAST_MODELS:
            break
        own = {use for use in wanted.uses - shared.uses if use.model in done}
        rest = wanted.of(done | {model}).without(own)
        pulled = {use: value for use, value in strain.items() if use.model == model and use in rest.uses}
        shared = yield from _give_back(problem, settings, shared, rest, model, pulled)
    return shared


def _rounds(
    problem: Problem, settings: SearchSettings, first: Trial, start: Mapping[str, float]
) -> Generator[Sequence[Trial], Sequence[Verdict], tuple[SharingMap, Mapping[Use, float]]]:
    """Retrain in rounds, each twice as long as the one before, for as long as that helps.

    Args:
        problem: the layers, queries and targets of all models.
        settings: the user's settings.
        first: the trial of the first round, still without a recipe.
        start: query name -> relative accuracy at the starting weights, as far as known.

    Returns:
        All committed sharing, and the gradient sensitivity of each shared weight in the last round of its model.
    """
    before, trial, strain = dict(start), first, dict[Use, float]()
    for length in range(_ROUNDS):
        if length:
            title = f"{first.group}, round {length + 1}"
            trial = replace(trial, group=title, start=Start("keep"), base="last")
        (verdict,) = yield [replace(trial, recipe=_recipe(settings, length))]
        outcome = verdict.outcome
        strain |= outcome.strain
        if outcome.ended in _ENDED:
            break
        if not length:
            # Do not judge queries that lost in the first round, as a donor's do: they may recover later.
            before = {query: value for query, value in before.items() if value <= outcome.relative[query]}
        hopeless = {model for model in trial.learners if not _promising(problem, model, before, outcome.relative)}
        if hopeless:
            # Models that share committed weights with a hopeless one cannot go on without it.
            rest = trial.learners - verdict.sharing.tied(hopeless)
            if len(rest) < LEAST_MODELS or rest <= outcome.met:
                break
            trial = replace(trial, sharing=trial.sharing.of(rest), learners=rest)
        before = outcome.relative
    return verdict.sharing, strain


def _promising(problem: Problem, model: str, before: Mapping[str, float], after: Mapping[str, float]) -> bool:
    """Check whether every query of a model would reach its target by gaining as much again as in the last round.

    Args:
        problem: the queries and targets of all models.
        model: name of the model.
        before: query name -> relative accuracy before the round; queries that are not in it are not judged.
        after: query name -> relative accuracy after the round.
    """
    return all(
        problem.targets.get(query, 1.0) - after[query] <= max(after[query] - before[query], 0.0)
        for query in problem.queries.get(model, (model,))
        if query in before
    )


def _fold(
    problem: Problem, settings: SearchSettings, wanted: SharingMap, shared: SharingMap, models: frozenset[str]
) -> _Phase:
    """Fold blocks inside models in two trials: the slots that make up half of the saving, then all; stop at a failure.

    Args:
        problem: the layers of all models.
        settings: the user's settings.
        wanted: sharing with the blocks halved.
        shared: all committed sharing.
        models: names of the models in ``wanted``.
    """
    new = [slot for slot in wanted.slots if slot not in shared.slots]
    heaviest = _heaviest(new, [problem.saved(shared.joined([slot])) - problem.saved(shared) for slot in new])
    for slots, what in ((heaviest, "the heaviest blocks halved"), (new, "all blocks halved")):
        title = f"{what} in {', '.join(sorted(models))}"
        start = Start("donor", by_size(problem, models))
        (verdict,) = yield [Trial(title, shared.joined(slots), models, start, _recipe(settings, _ROUNDS - 1))]
        shared = verdict.sharing
        if not verdict.accepted or len(slots) == len(new):
            break
    return shared


def _heaviest(slots: Sequence[Slot], savings: Sequence[int]) -> list[Slot]:
    """Return the fewest slots, those with the highest savings, that together make up half of all savings."""
    ranked = sorted(zip(savings, slots, strict=True), key=lambda each: (-each[0], each[1]))
    sums = list(accumulate(saving for saving, _ in ranked))
    count = next(count for count, saved in enumerate(sums, 1) if saved >= sums[-1] / 2)
    return [slot for _, slot in ranked[:count]]


def _recipe(settings: SearchSettings, length: int) -> Recipe:
    """Return the recipe of a training with ``2 ** length`` times the steps of the first round."""
    # No early stopping by pace: under cosine decay most is gained at the end, and the pace on the way says little.
    steps = settings.steps << length
    return Recipe(steps, rate=settings.rate or _RATE, batch=settings.batch, gives_up=False, spare=_SPARE)


def _give_back(
    problem: Problem,
    settings: SearchSettings,
    shared: SharingMap,
    wanted: SharingMap,
    model: str,
    strain: Mapping[Use, float],
) -> _Phase:
    """Retrain one model alone, with more and more of its weights private, until its queries meet their targets.

    Args:
        problem: the layers of all models.
        settings: the user's settings.
        shared: all committed sharing; its models are the ones to join.
        wanted: sharing between the model and the committed ones, before any weight becomes private.
        model: name of the model.
        strain: gradient sensitivity of each weight that the model would share.
    """
    total = sum(map(problem.size, strain))
    first = Trial("", shared, frozenset({model}), Start("donor", (*sorted(wanted.models - {model}), model)))
    own: set[Use] = set()
    for part in _GIVEN_BACK:
        before, own = own, _most_strained(strain, problem, part * total)
        if own == before:
            continue
        title = f"{model} without {len(own)} of {len(strain)} layers"
        smaller = shared.joined(wanted.without(own).slots)
        trial = replace(first, group=title, sharing=smaller, recipe=_recipe(settings, _ROUNDS - 1))
        (verdict,) = yield [trial]
        if verdict.accepted:
            return verdict.sharing
        first = replace(first, start=Start("keep"), base="last")
    return shared


def _most_strained(strain: Mapping[Use, float], problem: Problem, bytes_: float) -> set[Use]:
    """Return the weights with the highest strain that together take at most ``bytes_``, but at least one weight."""
    ranked = sorted(strain, key=lambda use: (-strain[use], use))
    sizes = accumulate(map(problem.size, ranked))
    return {use for use, size in zip(ranked, sizes, strict=True) if size <= bytes_} or set(ranked[:1])
