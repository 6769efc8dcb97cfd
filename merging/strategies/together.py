"""The default strategy: share everything at once, retrain, and give back only what a query cannot do without.

1. Each model in turn is tried as the donor of all shared weights, and so is their average, without a gradient
   (:mod:`gemel.merging.training.start`); the start that keeps most of all queries' accuracies is taken.
2. All models are retrained together from there, in up to three rounds of twice the length each, until every query
   keeps its target with something to spare. Models for which another round promises too little are left out of it.
3. A query that still misses its target gets back the weights that it pulls at hardest for their size, an eighth of
   what it shares, then a quarter, then half; it alone learns, from the weights that the others have agreed on, so that
   nothing is lost for these. If that is not enough, its model stays as it was. Where there are no such others, or no
   start leaves two models with anything, all begin anew with the heaviest slots, which save half as much, then with the
   rest of them.
4. Where all queries keep their targets with everything shared, models are left with half as many different blocks, the
   heaviest first, and retrained.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

from ..layers.problem import Problem, pair_layers
from ..layers.sharing import SharingMap, Slot, Use
from ..training.training import Recipe
from ..training.trial import Outcome, Start, Trial
from . import Search, SearchSettings, Verdict

__all__ = ["together"]

_Shared = Generator[Sequence[Trial], Sequence[Verdict], SharingMap]
"""A part of a search; it returns what is shared afterwards."""
_RATE = 0.02
_ROUNDS = 3
_SPARE = 0.5
"""Images that decide are not those of tomorrow: training goes on until half of what may be lost is left."""
_ENDED = ("start", "met")
"""How a training ends after which another round is of no use."""
_LEAST = 0.01
"""What a query counts that keeps nothing at all: zero would make all donors equal."""
_ALIVE = 0.1
"""What all queries of a model must keep at the start, or it is not to be trained back from there."""
_WORTH = 0.05
"""Of the bytes of all layers: what must be saved for a part of the slots to be tried alone."""
_LEAST_MODELS = 2
"""That share before others join them one by one: a model that shares with itself alone is none to join."""
_GIVEN_BACK = (1 / 8, 1 / 4, 1 / 2)


def together(problem: Problem, settings: SearchSettings) -> Search:
    """Every part of the workload whose models can share something, as one. See the module."""
    everything = _pairing(problem, settings, 0)
    for models in _parts(everything):
        wanted = everything.of(models)
        shared = yield from _merge(problem, settings, wanted, models, bold=True)
        if len(models & shared.models) < _LEAST_MODELS:
            yield from _halves(problem, settings, wanted, shared)
            continue
        for folds in range(1, settings.folds + 1):
            before, wanted = wanted, _pairing(problem, settings, folds).of(models)
            if wanted == before or not set(before.slots) <= set(shared.slots):
                break
            shared = yield from _fold(problem, settings, wanted, shared, models)


def _halves(problem: Problem, settings: SearchSettings, wanted: SharingMap, shared: SharingMap) -> _Shared:
    """What hardly any model could bear, in two parts: its heaviest slots, which save half of it all, and the rest."""
    heaviest = _heaviest(wanted.slots, [problem.saved(SharingMap((slot,))) for slot in wanted.slots])
    if len(heaviest) == len(wanted.slots):
        return shared
    rest = [slot for slot in wanted.slots if slot not in heaviest]
    for slots, what in ((heaviest, "heaviest"), (rest, "lighter")):
        for models in _parts(half := SharingMap().joined(slots)):
            part = half.of(models)
            if problem.saved(part) < _WORTH * problem.bytes:
                continue
            before, joined = shared, shared.of(models).joined(part.slots)
            shared = yield from _merge(problem, settings, joined, models, f"the {len(part.slots)} {what} layers")
            if _between(shared.of(models)) == _between(before.of(models)):
                shared = yield from _halves(problem, settings, part, shared)
    return shared


def _between(sharing: SharingMap) -> SharingMap:
    """What models share with each other."""
    return SharingMap(tuple(slot for slot in sharing.slots if len({use.model for use in slot}) > 1))


def _pairing(problem: Problem, settings: SearchSettings, folds: int) -> SharingMap:
    return SharingMap().joined(slot for _, slot in pair_layers(problem, inside=settings.inside, folds=folds))


def _parts(sharing: SharingMap) -> list[frozenset[str]]:
    """Models that hang together, a set for each part."""
    parts: list[frozenset[str]] = []
    for slot in sharing.slots:
        if not any(slot[0].model in part for part in parts):
            parts.append(sharing.tied({slot[0].model}))
    return parts


def _merge(
    problem: Problem,
    settings: SearchSettings,
    wanted: SharingMap,
    models: frozenset[str],
    what: str = "all layers",
    *,
    bold: bool = False,
) -> _Shared:
    """Steps 1 to 3 of the module for models that hang together; returns what is shared then.

    Args:
        problem: the models.
        settings: of the search.
        wanted: what they are to share.
        models: their names.
        what: the same in words.
        bold: whether so much is wanted that training is not even begun where hardly anything is left at its start.
    """
    looks = yield from _looks(problem, settings, wanted, models)
    best = max(looks, key=lambda look: _promise(problem, wanted, look.outcome), default=None)
    if any(look.accepted for look in looks) or (
        best is not None and bold and not _is_alive(problem, models, best.outcome)
    ):
        return looks[-1].sharing
    start = best.trial.start if best else Start(settings.start or "first", _by_size(problem, models))
    first = Trial(f"{what} of {', '.join(sorted(models))}", wanted, models, start)
    shared, strain = yield from _rounds(problem, settings, first, best.outcome.relative if best else {})
    for model in sorted(models - shared.models):
        done = models & shared.models
        if len(done) < _LEAST_MODELS:
            break
        own = {use for use in wanted.uses - shared.uses if use.model in done}
        rest = wanted.of(done | {model}).without(own)
        pulled = {use: value for use, value in strain.items() if use.model == model and use in rest.uses}
        shared = yield from _give_back(problem, settings, shared, rest, model, pulled)
    return shared


def _rounds(
    problem: Problem, settings: SearchSettings, first: Trial, start: Mapping[str, float]
) -> Generator[Sequence[Trial], Sequence[Verdict], tuple[SharingMap, Mapping[Use, float]]]:
    """Train for as long as that helps, in rounds of twice the length each.

    Returns:
        What is shared then, and how hard each model pulls at what it shares, in the last round that it was in.
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
            # That a donor has come down from where it began does not tell how far it comes up again.
            before = {query: value for query, value in before.items() if value <= outcome.relative[query]}
        hopeless = {model for model in trial.learners if not _promising(problem, model, before, outcome.relative)}
        if hopeless:
            # Nor can those go on alone whose weights are theirs already.
            rest = trial.learners - verdict.sharing.tied(hopeless)
            if len(rest) < _LEAST_MODELS or rest <= outcome.met:
                break
            trial = replace(trial, sharing=trial.sharing.of(rest), learners=rest)
        before = outcome.relative
    return verdict.sharing, strain


def _promising(problem: Problem, model: str, before: Mapping[str, float], after: Mapping[str, float]) -> bool:
    """Whether every query of a model would reach its target, if it is not there, by gaining as much again."""
    return all(
        problem.targets.get(query, 1.0) - after[query] <= max(after[query] - before[query], 0.0)
        for query in problem.queries.get(model, (model,))
        if query in before
    )


def _fold(
    problem: Problem, settings: SearchSettings, wanted: SharingMap, shared: SharingMap, models: frozenset[str]
) -> _Shared:
    """Step 4: from weights that all can bear to half as many; first what saves most of it, then the rest."""
    new = [slot for slot in wanted.slots if slot not in shared.slots]
    heaviest = _heaviest(new, [problem.saved(shared.joined([slot])) - problem.saved(shared) for slot in new])
    for slots, what in ((heaviest, "the heaviest blocks halved"), (new, "all blocks halved")):
        title = f"{what} in {', '.join(sorted(models))}"
        start = Start("donor", _by_size(problem, models))
        (verdict,) = yield [Trial(title, shared.joined(slots), models, start, _recipe(settings, _ROUNDS - 1))]
        shared = verdict.sharing
        if not verdict.accepted or len(slots) == len(new):
            break
    return shared


def _heaviest(slots: Sequence[Slot], savings: Sequence[int]) -> list[Slot]:
    """The slots that save most, which together save half of it all."""
    ranked = sorted(zip(savings, slots, strict=True), key=lambda each: (-each[0], each[1]))
    sums = list(accumulate(saving for saving, _ in ranked))
    count = next(count for count, saved in enumerate(sums, 1) if saved >= sums[-1] / 2)
    return [slot for _, slot in ranked[:count]]


def _recipe(settings: SearchSettings, length: int) -> Recipe:
    """Training of ``2 ** length`` times the steps of a first one."""
    # With a falling learning rate most is gained at the end: what was gained on the way says little.
    steps = settings.steps << length
    return Recipe(steps, rate=settings.rate or _RATE, batch=settings.batch, gives_up=False, spare=_SPARE)


def _by_size(problem: Problem, models: frozenset[str]) -> tuple[str, ...]:
    """Largest first; models of one size come by name, as a set has another order in every process."""
    return tuple(sorted(models, key=lambda name: (-len(problem.layers[name]), name)))


def _looks(
    problem: Problem, settings: SearchSettings, wanted: SharingMap, models: frozenset[str]
) -> Generator[Sequence[Trial], Sequence[Verdict], Sequence[Verdict]]:
    """Try each model as the donor, and their average; nothing where the settings say how to start."""
    if settings.start in ("first", "average"):
        return []
    by_size = _by_size(problem, models)
    starts = [Start("donor", (name, *(other for other in by_size if other != name))) for name in by_size]
    titles = [f"donor {name}" for name in by_size]
    starts.append(Start("average", by_size))
    titles.append("average")
    looks = [Trial(title, wanted, models, start) for title, start in zip(titles, starts, strict=True)]
    verdicts: Sequence[Verdict] = yield looks
    return verdicts


def _is_alive(problem: Problem, models: frozenset[str], start: Outcome) -> bool:
    """Whether a start leaves two models, so that they could share, with something to be trained back from."""
    alive = [
        model
        for model in models
        if all(start.relative[query] >= _ALIVE for query in problem.queries.get(model, (model,)))
    ]
    return len(alive) >= _LEAST_MODELS


def _promise(problem: Problem, wanted: SharingMap, outcome: Outcome) -> float:
    """What a start is worth: the product of what queries keep, so one that keeps little counts more than others do.

    A deep model makes up for more in training, as it has more BatchNorms to do so with: a query counts with the square
    of the smallest model's number of layers divided by its own model's.
    """
    fewest = min(len(problem.layers[model]) for model in wanted.models)
    product = 1.0
    for model in sorted(wanted.models):
        for query in problem.queries.get(model, (model,)):
            kept = min(max(outcome.relative[query], _LEAST), 1.0)
            product *= kept ** (fewest / len(problem.layers[model])) ** 2
    return product


def _give_back(
    problem: Problem,
    settings: SearchSettings,
    shared: SharingMap,
    wanted: SharingMap,
    model: str,
    strain: Mapping[Use, float],
) -> _Shared:
    """Retrain one model alone, with more and more of its weights its own, until that is enough.

    Args:
        problem: the models.
        settings: of the search.
        shared: what is shared already, by models that it is to join.
        wanted: what it is to share with them, if it can bear it.
        model: its name.
        strain: how hard it pulls at each weight that it is to share.

    Returns:
        What is shared then.
    """
    total = sum(map(problem.size, strain))
    first = Trial("", shared, frozenset({model}), Start("donor", (*sorted(wanted.models - {model}), model)))
    own: set[Use] = set()
    for part in _GIVEN_BACK:
        before, own = own, _hardest(strain, problem, part * total)
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


def _hardest(strain: Mapping[Use, float], problem: Problem, bytes_: float) -> set[Use]:
    """The uses with the highest strain that are together no larger than ``bytes_``, but at least one."""
    ranked = sorted(strain, key=lambda use: (-strain[use], use))
    sizes = accumulate(map(problem.size, ranked))
    return {use for use, size in zip(ranked, sizes, strict=True) if size <= bytes_} or set(ranked[:1])
