"""Joint retraining of one set of models: starting weights, rounds of training, and giving weights back."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

from ..layers.families import by_size
from ..layers.problem import Problem
from ..layers.sharing import SharingMap, Use
from ..training.training import Recipe
from ..training.trial import Start, Trial
from . import SearchSettings, Verdict
from .starts import LEAST_MODELS, is_usable, start_score, try_starts

__all__ = ["Phase", "give_back", "long_recipe", "merge_all", "retrain_in_rounds", "short_recipe"]

Phase = Generator[Sequence[Trial], Sequence[Verdict], SharingMap]
"""Generator that runs one phase of the search: it yields batches of trials and returns the committed sharing map."""
_RATE = 0.02
"""Default learning rate of SGD, for batches of 64 images."""
_ROUNDS = 3
"""Maximum number of rounds of joint retraining."""
_SPARE = 0.5
"""Fraction of the allowed accuracy loss that must be unused before training stops, because later images will differ."""
_GIVEN_BACK = (1 / 8, 1 / 4, 1 / 2)
"""Fractions of the bytes of a model's shared weights that become private, tried one after the other."""


def merge_all(
    problem: Problem,
    settings: SearchSettings,
    wanted: SharingMap,
    models: frozenset[str],
    what: str = "all layers",
    *,
    units: Sequence[frozenset[str]] = (),
) -> Phase:
    """Merge one set of connected models: choose starting weights, retrain jointly, make weights private where needed.

    Args:
        problem: the layers of all models.
        settings: the user's settings.
        wanted: sharing map to reach.
        models: names of the models in ``wanted``.
        what: name of the layers in ``wanted``, for the titles of trials.
        units: sets of models of which the best starting weights must leave two usable; otherwise the search gives up
            before training. Without units, it trains whatever the starting weights are.
    """
    tried = yield from try_starts(problem, settings, wanted, models)
    best = next((verdict for verdict in tried if verdict.accepted), None)
    if best is not None and best.trial.learners == models:
        return tried[-1].sharing
    if best is None:
        # All looks are at the same models.
        best = max(
            tried, key=lambda verdict: start_score(problem, verdict.trial.sharing, verdict.outcome), default=None
        )
    if best is not None and units and not is_usable(problem, units, best.trial.learners, best.outcome):
        return best.sharing
    ordered = by_size(problem, models)
    start = Start(settings.start or "first", ordered)
    if best is not None:
        chosen = best.trial.start
        start = replace(chosen, order=tuple(dict.fromkeys((*chosen.order[: chosen.kind == "donor"], *ordered))))
    first = Trial(f"{what} of {', '.join(sorted(models))}", wanted, models, start)
    last, strain = yield from retrain_in_rounds(problem, settings, first, best.outcome.relative if best else {})
    shared, held = last.sharing, _held(last)
    for model in sorted(models - held.models):
        done = models & held.models
        if len(done) < LEAST_MODELS:
            break
        own = {use for use in wanted.uses - held.uses if use.model in done}
        rest = wanted.of(done | {model}).without(own)
        again = long_recipe(settings) if held != shared else None
        given = yield from give_back(problem, settings, held, rest, model, strain, again=again)
        if given is not None:
            shared, held = given.sharing, given.sharing if given.accepted else given.trial.sharing
    return shared


def _held(last: Verdict) -> SharingMap:
    """Return the committed sharing map, with the sharing that models reached their targets with in the last training.

    This sharing is not committed where it saves less than forms of the same models do. With one more model, it may save
    more.
    """
    met = last.outcome.met
    if len(met) < LEAST_MODELS or met & last.sharing.models:
        return last.sharing
    return last.sharing.joined(last.trial.sharing.of(met).slots)


def retrain_in_rounds(
    problem: Problem, settings: SearchSettings, first: Trial, start: Mapping[str, float]
) -> Generator[Sequence[Trial], Sequence[Verdict], tuple[Verdict, Mapping[Use, float]]]:
    """Retrain models in up to three rounds, each twice as long as the one before, while another round is promising.

    Args:
        problem: the layers, queries and targets of all models.
        settings: the user's settings.
        first: the trial of the first round, still without a recipe.
        start: query name -> accuracy at the starting weights / original accuracy, as far as known.

    Returns:
        The verdict on the last round, and the gradient sensitivity of each shared weight in the last round of its
        model.
    """
    before, trial, strain = dict(start), first, dict[Use, float]()
    for length in range(_ROUNDS):
        if length:
            title = f"{first.group}, round {length + 1}"
            trial = replace(trial, group=title, start=Start("keep"), base="last")
        (verdict,) = yield [replace(trial, recipe=_recipe(settings, length))]
        outcome = verdict.outcome
        strain |= outcome.strain
        if outcome.has_spare:
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
    return verdict, strain


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


def _recipe(settings: SearchSettings, length: int) -> Recipe:
    """Return the recipe of a training with ``2 ** length`` times as many steps as the first round."""
    # No early stopping by pace: under cosine decay most accuracy is gained at the end, so the pace before says little.
    steps = settings.steps << length
    # On W1, the first round left the ResNet-44 with 0.960 of its accuracy, and with 0.950 where images were shifted;
    # the second one with 0.979 and 0.983.
    shifts = length > 0
    rate = settings.rate or _RATE
    taught = settings.supervision or "teacher"
    return Recipe(
        steps, rate=rate, batch=settings.batch, supervision=taught, gives_up=False, spare=_SPARE, shifts=shifts
    )


def short_recipe(settings: SearchSettings) -> Recipe:
    """Return the recipe of a training that is as long as the first round of a joint retraining."""
    return _recipe(settings, 0)


def long_recipe(settings: SearchSettings) -> Recipe:
    """Return the recipe of a training that is as long as the last round of a joint retraining."""
    return _recipe(settings, _ROUNDS - 1)


def give_back(
    problem: Problem,
    settings: SearchSettings,
    shared: SharingMap,
    wanted: SharingMap,
    model: str,
    strain: Mapping[Use, float],
    *,
    again: Recipe | None = None,
) -> Generator[Sequence[Trial], Sequence[Verdict], Verdict | None]:
    """Retrain one model alone, with more and more of its weights private, until its queries meet their targets.

    Args:
        problem: the layers of all models.
        settings: the user's settings.
        shared: sharing map that the model joins, whose models reach their targets.
        wanted: sharing map between the model and those of ``shared``, before any weight becomes private.
        model: name of the model to retrain.
        strain: gradient sensitivity of weights; those that the model would not share do not count.
        again: recipe with which the model is trained on from the weights after the last trial that trained; None to
            train it for long from donor weights and what is committed.

    Returns:
        The verdict on the trial with which the model reaches its targets; None if there is no such trial.
    """
    pulled = {use: value for use, value in strain.items() if use.model == model and use in wanted.uses}
    total = sum(map(problem.size, pulled))
    first = Trial("", shared, frozenset({model}), Start("donor", (*sorted(wanted.models - {model}), model)))
    recipe = again or long_recipe(settings)
    if again is not None:
        first = replace(first, start=Start("keep"), base="last")
    own: set[Use] = set()
    for part in _GIVEN_BACK:
        before, own = own, _most_strained(pulled, problem, part * total)
        if own == before:
            continue
        title = f"{model} without {len(own)} of {len(pulled)} layers"
        smaller = shared.joined(wanted.without(own).slots)
        trial = replace(first, group=title, sharing=smaller, recipe=recipe)
        (verdict,) = yield [trial]
        if model in verdict.outcome.met:
            return verdict
        first = replace(first, start=Start("keep"), base="last")
    return None


def _most_strained(strain: Mapping[Use, float], problem: Problem, bytes_: float) -> set[Use]:
    """Return weights of at most ``bytes_`` in total, highest gradient sensitivity first, but at least one weight."""
    ranked = sorted(strain, key=lambda use: (-strain[use], use))
    sizes = accumulate(map(problem.size, ranked))
    return {use for use, size in zip(ranked, sizes, strict=True) if size <= bytes_} or set(ranked[:1])
