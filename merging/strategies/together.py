"""The default strategy: share everything at once, retrain, then make private again only what a query needs.

1. Starting weights. Each model is tried as the donor of all shared weights, and so is the average of all models with
   aligned channels (:mod:`gemel.merging.training.start`). Nothing is trained in this step. The starting weights that
   preserve most accuracy are taken.
2. Joint retraining. All models are retrained together by distillation, in up to three rounds, each twice as long as the
   one before, until every query meets its target with a margin. A model is left out of a round if that round is
   unlikely to bring its queries to their targets.
3. Giving back. If a query still misses its target, its model gets private copies of the weights with the highest
   gradient sensitivity per byte: an eighth of the bytes that the model shares, then a quarter, then half. Only this
   model is retrained, and shared weights are frozen, so the other models lose nothing. If half is not enough, the model
   keeps its original weights.
4. Bisection. It replaces step 3 if fewer than two models meet their targets, and step 2 if no starting weights leave
   two models usable. Steps 1 to 3 are repeated from the original weights for the heaviest slots (sets of layer weights
   that hold one tensor) that make up half of the saving, then for the other slots in addition.
5. Folding, if all queries meet their targets with everything shared. Cross-layer parameter sharing inside models halves
   the number of different blocks in a model, heaviest first, and all models are retrained.
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
"""Generator that runs one phase of the search: it yields batches of trials and returns the committed sharing map."""
_RATE = 0.02
"""Default learning rate of SGD, for batches of 64 images."""
_ROUNDS = 3
"""Maximum number of rounds of joint retraining."""
_SPARE = 0.5
"""Fraction of the allowed accuracy loss that must be unused before training stops, because later images will differ."""
_ENDED = ("start", "met")
"""Values of :attr:`.Outcome.ended` after which another training round is useless."""
_WORTH = 0.05
"""Minimum saving, as a fraction of all layers' bytes, for which some slots (sets of shared weights) are tried alone."""
_GIVEN_BACK = (1 / 8, 1 / 4, 1 / 2)
"""Fractions of the bytes of a model's shared weights that become private, tried one after the other."""


def together(problem: Problem, settings: SearchSettings) -> Search:
    """Search for each set of models that can share weights: share all, retrain, then give back, bisect or fold."""
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
    """Share the heaviest slots (sets of layer weights that hold one tensor) with half of the saving, then the rest.

    A half that adds no committed sharing between models is bisected again.

    Args:
        problem: the layers of all models.
        settings: the user's settings.
        wanted: sharing map that too few models could keep.
        shared: sharing map that is committed so far.
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
    """Return a sharing map with only those slots (sets of weights that hold one tensor) that join several models."""
    return SharingMap(tuple(slot for slot in sharing.slots if len({use.model for use in slot}) > 1))


def _full_map(problem: Problem, settings: SearchSettings, folds: int) -> SharingMap:
    """Return the sharing map that shares all shareable layers, with the different blocks halved ``folds`` times."""
    return SharingMap().joined(slot for _, slot in pair_layers(problem, inside=settings.inside, folds=folds))


def _components(sharing: SharingMap) -> list[frozenset[str]]:
    """Return the sets of models that shared weights connect, directly or through other models."""
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
    """Merge one set of connected models: choose starting weights, retrain jointly, make weights private where needed.

    Args:
        problem: the layers of all models.
        settings: the user's settings.
        wanted: sharing map to reach.
        models: names of the models in ``wanted``.
        what: name of the layers in ``wanted``, for the titles of trials.
        usable: whether to give up before training if the best starting weights leave fewer than two models usable.
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
    """Retrain models in up to three rounds, each twice as long as the one before, while another round is promising.

    Args:
        problem: the layers, queries and targets of all models.
        settings: the user's settings.
        first: the trial of the first round, still without a recipe.
        start: query name -> accuracy at the starting weights / original accuracy, as far as known.

    Returns:
        The committed sharing map, and the gradient sensitivity of each shared weight in the last round of its model.
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
            # Do not judge queries whose accuracy fell in the first round, as a donor's does: they may recover later.
            before = {query: value for query, value in before.items() if value <= outcome.relative[query]}
        hopeless = {model for model in trial.learners if not _promising(problem, model, before, outcome.relative)}
        if hopeless:
            # Models that share committed weights with a hopeless model cannot be retrained without this model.
            rest = trial.learners - verdict.sharing.tied(hopeless)
            if len(rest) < LEAST_MODELS or rest <= outcome.met:
                break
            trial = replace(trial, sharing=trial.sharing.of(rest), learners=rest)
        before = outcome.relative
    return verdict.sharing, strain


def _promising(problem: Problem, model: str, before: Mapping[str, float], after: Mapping[str, float]) -> bool:
    """Check whether every query of a model would reach its target with the same accuracy gain as in the last round.

    Args:
        problem: the queries and targets of all models.
        model: name of the model.
        before: query name -> accuracy before the round / original accuracy; queries without an entry are not judged.
        after: query name -> accuracy after the round / original accuracy.
    """
    return all(
        problem.targets.get(query, 1.0) - after[query] <= max(after[query] - before[query], 0.0)
        for query in problem.queries.get(model, (model,))
        if query in before
    )


def _fold(
    problem: Problem, settings: SearchSettings, wanted: SharingMap, shared: SharingMap, models: frozenset[str]
) -> _Phase:
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
    """Return the fewest slots (sets of layer weights that hold one tensor) that make up half of all savings."""
    ranked = sorted(zip(savings, slots, strict=True), key=lambda each: (-each[0], each[1]))
    sums = list(accumulate(saving for saving, _ in ranked))
    count = next(count for count, saved in enumerate(sums, 1) if saved >= sums[-1] / 2)
    return [slot for _, slot in ranked[:count]]


def _recipe(settings: SearchSettings, length: int) -> Recipe:
    """Return the recipe of a training with ``2 ** length`` times as many steps as the first round."""
    # No early stopping by pace: under cosine decay most accuracy is gained at the end, so the pace before says little.
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
        shared: sharing map that is committed so far; the model joins its models.
        wanted: sharing map between the model and the committed models, before any weight becomes private.
        model: name of the model to retrain.
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
    """Return weights of at most ``bytes_`` in total, highest gradient sensitivity first, but at least one weight."""
    ranked = sorted(strain, key=lambda use: (-strain[use], use))
    sizes = accumulate(map(problem.size, ranked))
    return {use for use, size in zip(ranked, sizes, strict=True) if size <= bytes_} or set(ranked[:1])
