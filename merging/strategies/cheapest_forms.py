"""Search for forms of weights without training: the fewest bits per layer with which every query keeps its target.

Each model is tried with the same number of bits in all layers. Between the fewest bits that hold and the next fewer,
the layers whose error falls most for its bytes get the more bits first; how many need them is found by bisection. No
trial trains: each costs one measurement.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..forms.costs import LayerCost, uniform_forms
from ..forms.form_map import Form, FormMap, saved_bytes
from ..layers.problem import Problem
from ..layers.sharing import SharingMap
from ..training.training import Recipe
from ..training.trial import Start, Trial
from . import Search, SearchSettings, Strategy, Verdict
from .bit_border import BitBorder

__all__ = ["DIFFERENCE_BITS", "OWN_BITS", "FormCosts", "keep_differences", "with_forms"]

DIFFERENCE_BITS = (0, 1, 2, 4, 8)
"""Bits of differences to try, fewest first; 0 bits keep the base alone."""
OWN_BITS = (4, 8)
"""Bits of codes of a model's own weights to try, fewest first. Fewer do not hold without training."""
_RATE = 0.01
"""Default learning rate of SGD for differences of one bit, for batches of 64 images."""
_SPARE = 0.5
"""Fraction of the allowed accuracy loss that must be unused before training stops, because later images will differ."""
_LOOKS = 4
"""Number of mixtures of two numbers of bits that are measured for one model."""

_Phase = Generator[Sequence[Trial], Sequence[Verdict], FormMap]
"""Generator that runs one phase of the search: it yields batches of trials and returns the committed forms."""
_Measured = Generator[Sequence[Trial], Sequence[Verdict], dict[str, int]]
"""Generator that measures equal bits in all layers of models; it returns model name -> fewest bits that hold."""
_Mixed = Generator[Sequence[Trial], Sequence[Verdict], dict[str, FormMap]]
"""Generator that measures mixtures of bits; it returns model name -> the cheapest forms that hold."""
_Costs = Mapping[str, Sequence[LayerCost]]
"""Model name -> errors of the forms of its layers."""
_FROM_ORIGINALS = Trial("", SharingMap(), frozenset(), Start("keep"), base="original", measure=True)
"""Trial that measures models with their original weights, still without models and forms."""


@dataclass(frozen=True)
class FormCosts:
    """Errors of all forms that the weights of a workload's models can have."""

    families: tuple[Mapping[str, Sequence[LayerCost]], ...] = ()
    """Per family: name of a member -> costs of its differences to the family's base."""
    own: Mapping[str, Sequence[LayerCost]] = field(default_factory=dict)
    """Model name -> costs of codes of the model's own weights."""


def with_forms(plan: Strategy, problem: Problem, settings: SearchSettings, costs: FormCosts) -> Search:
    """Run a search strategy between two searches for forms: differences of fine-tunes before, compression after.

    Args:
        plan: the strategy.
        problem: the layers of all models.
        settings: the user's settings.
        costs: errors of the forms that weights can have.
    """
    sharing, forms = SharingMap(), FormMap()
    for family in costs.families:
        forms = yield from keep_differences(problem, family, forms, sharing)
        if settings.retrain:
            forms = yield from _train_signs(problem, family, forms, settings)
    if settings.retrain:
        trials = _next(search := plan(problem, settings), None)
        while trials is not None:
            verdicts = yield trials
            sharing, forms = verdicts[-1].sharing, verdicts[-1].forms
            trials = _next(search, verdicts)
    yield from _compression(problem, costs.own, sharing, forms, settings)


def _next(search: Search, verdicts: Sequence[Verdict] | None) -> Sequence[Trial] | None:
    """Send verdicts to a running strategy and return its next batch of trials, or None after the last batch."""
    try:
        return next(search) if verdicts is None else search.send(verdicts)
    except StopIteration:
        return None


def keep_differences(problem: Problem, family: _Costs, forms: FormMap, sharing: SharingMap) -> _Phase:
    """Keep the members of a family as differences to its base; return the committed forms.

    What holds with equal bits everywhere is committed before layers are mixed, so that an early end loses little.

    Args:
        problem: the layers of all models.
        family: name of a member -> costs of its differences.
        forms: forms that are committed so far.
        sharing: sharing map that is committed so far.
    """
    holds = yield from _uniform(family, DIFFERENCE_BITS, "differences", _FROM_ORIGINALS)
    equal = {model: uniform_forms(family[model], bits) for model, bits in holds.items()}
    forms = yield from _commit(problem, equal, sharing, forms, _FROM_ORIGINALS)
    mixed = yield from _mix(family, holds, DIFFERENCE_BITS, "differences", _FROM_ORIGINALS)
    return (yield from _commit(problem, mixed, sharing, forms, _FROM_ORIGINALS))


def _train_signs(problem: Problem, family: _Costs, forms: FormMap, settings: SearchSettings) -> _Phase:
    """Train members of a family with differences of one bit, where these take fewer bytes than what holds untrained.

    Each member learns from its original; the base stays as it is. Members that do not reach their targets keep the
    forms that they have.

    Args:
        problem: the layers of all models.
        family: name of a member -> costs of its differences.
        forms: forms that are committed so far.
        settings: the user's settings.
    """
    if not family.keys() & forms.models:
        return forms
    signs = {model: uniform_forms(costs, 1) for model, costs in family.items()}
    saved = saved_bytes(problem, SharingMap(), forms)
    better = {
        model: part
        for model, part in signs.items()
        if saved_bytes(problem, SharingMap(), _with(forms, {model: part})) > saved
    }
    if not better:
        return forms
    recipe = Recipe(
        settings.steps,
        rate=settings.rate or _RATE,
        batch=settings.batch,
        supervision=settings.supervision or "teacher",
        gives_up=False,
        spare=_SPARE,
    )
    title = f"differences of 1 bit, trained, of {', '.join(sorted(better))}"
    new = FormMap().joined({use: form for part in better.values() for use, form in part.forms})
    (verdict,) = yield [
        replace(_FROM_ORIGINALS, group=title, learners=frozenset(better), forms=new, recipe=recipe, measure=False)
    ]
    return verdict.forms


def _compression(
    problem: Problem, own: _Costs, sharing: SharingMap, forms: FormMap, settings: SearchSettings
) -> _Phase:
    """Measure what codes of the models' own weights would save, and keep them if the user wants compression.

    Compression alone is measured in any case, so that the report can compare the merge with it.

    Args:
        problem: the layers of all models.
        own: model name -> costs of codes of its own weights.
        sharing: sharing map that is committed.
        forms: forms that are committed.
        settings: the user's settings.
    """
    holds = yield from _uniform(own, OWN_BITS, "own weights", _FROM_ORIGINALS)
    if not settings.compress:
        return forms
    apart = {model: costs for model, costs in own.items() if model not in sharing.models}
    mixed = yield from _mix(apart, holds, OWN_BITS, "own weights", _FROM_ORIGINALS)
    # A base serves a whole family, so differences are replaced in all of its members or in none.
    single = {model: part for model, part in mixed.items() if model not in forms.models}
    best = max((mixed, single), key=lambda parts: saved_bytes(problem, sharing, _with(forms, parts)))
    forms = yield from _commit(problem, best, sharing, forms, _FROM_ORIGINALS)
    if not sharing.slots:
        return forms
    template = replace(_FROM_ORIGINALS, sharing=sharing, base="committed")
    tied = {model: costs for model, costs in own.items() if model in sharing.models}
    holds = yield from _uniform(tied, OWN_BITS, "merged weights", template)
    mixed = yield from _mix(tied, holds, OWN_BITS, "merged weights", template)
    return (yield from _commit(problem, _agreed(mixed, sharing), sharing, forms, template))


def _uniform(costs: _Costs, bits: Sequence[int], what: str, template: Trial) -> _Measured:
    """Find, by bisection, the fewest bits in all layers with which all queries of a model reach their goals.

    Args:
        costs: model name -> costs of the forms of its layers.
        bits: numbers of bits to choose from, fewest first.
        what: name of the forms, for the titles of trials.
        template: trial that says which weights are measured.

    Returns:
        Model name -> bits, for the models that reach their goals with some number of bits.
    """
    # Indices of numbers of bits between which the border lies: the first fails, the second holds.
    borders = {model: (-1, len(bits)) for model, part in costs.items() if part}
    while middles := {model: (low + high) // 2 for model, (low, high) in borders.items() if high - low > 1}:
        trials = [
            _trial(template, model, f"{what} of {bits[middle]} bits", uniform_forms(costs[model], bits[middle]))
            for model, middle in middles.items()
        ]
        verdicts = yield trials
        for (model, middle), verdict in zip(middles.items(), verdicts, strict=True):
            low, high = borders[model]
            borders[model] = (low, middle) if verdict.outcome.met else (middle, high)
    return {model: bits[high] for model, (_, high) in borders.items() if high < len(bits)}


def _mix(costs: _Costs, holds: Mapping[str, int], bits: Sequence[int], what: str, template: Trial) -> _Mixed:
    """Find per model how many layers need the fewest bits that hold everywhere; the others get the next fewer.

    Args:
        costs: model name -> costs of the forms of its layers.
        holds: model name -> fewest bits that hold in all layers.
        bits: all numbers of bits, fewest first.
        what: name of the forms, for the titles of trials.
        template: trial that says which weights are measured.

    Returns:
        Model name -> forms, for the models with a number of bits that holds.
    """
    found = {model: uniform_forms(part, holds[model]) for model, part in costs.items() if model in holds}
    borders = {
        model: BitBorder(costs[model], bits[bits.index(holds[model]) - 1], holds[model])
        for model in found
        if holds[model] != bits[0]
    }
    for _ in range(_LOOKS):
        tried = {model: border.forms() for model, border in borders.items() if border.is_open}
        if not tried:
            break
        trials = [
            _trial(template, model, f"{what} of {border.fewer} bits, {border.middle} layers with {border.more}", forms)
            for model, forms in tried.items()
            for border in (borders[model],)
        ]
        verdicts = yield trials
        for (model, forms), verdict in zip(tried.items(), verdicts, strict=True):
            borders[model].narrow(bool(verdict.outcome.met))
            if verdict.outcome.met:
                found[model] = forms
    return found


def _commit(
    problem: Problem, parts: Mapping[str, FormMap], sharing: SharingMap, forms: FormMap, template: Trial
) -> _Phase:
    """Commit the forms of some models with one trial, if they save bytes; return the committed forms.

    If queries miss their goals in this trial, it is repeated once without their models.

    Args:
        problem: the layers and queries of all models.
        parts: model name -> forms to commit.
        sharing: sharing map that is committed.
        forms: forms that are committed so far.
        template: trial that says which weights the forms are made of.
    """
    for _ in range(2):
        wanted = _with(forms, parts)
        if saved_bytes(problem, sharing, wanted) <= saved_bytes(problem, sharing, forms):
            break
        title = f"forms of {', '.join(sorted(parts))}"
        new = FormMap().joined({use: form for part in parts.values() for use, form in part.forms})
        (verdict,) = yield [replace(template, group=title, learners=frozenset(parts), forms=new, measure=False)]
        if verdict.accepted:
            return verdict.forms
        parts = {model: part for model, part in parts.items() if model in verdict.outcome.met}
    return forms


def _with(forms: FormMap, parts: Mapping[str, FormMap]) -> FormMap:
    """Return the forms after some models got new ones in place of all that they had."""
    found = forms.without(parts)
    for part in parts.values():
        found = found.joined(part)
    return found


def _agreed(parts: Mapping[str, FormMap], sharing: SharingMap) -> dict[str, FormMap]:
    """Return forms in which weights that share a tensor have the same form: the one with most bits.

    A shared weight has no form if a model that shares it has none.

    Args:
        parts: model name -> forms that hold for the model alone.
        sharing: sharing map that is committed.
    """
    found = FormMap().joined({use: form for part in parts.values() for use, form in part.forms}).by_use
    agreed = dict(found)
    for slot in sharing.slots:
        bits = [found[use].bits if use in found else 0 for use in slot]
        for use in slot:
            agreed.pop(use, None)
            if min(bits):
                agreed[use] = Form(max(bits))
    return {
        model: FormMap().joined({use: form for use, form in agreed.items() if use.model == model})
        for model in sorted({use.model for use in agreed})
    }


def _trial(template: Trial, model: str, title: str, forms: FormMap) -> Trial:
    """Return a trial that measures one model with some forms."""
    return replace(template, group=f"{model}: {title}", learners=frozenset({model}), forms=forms)
