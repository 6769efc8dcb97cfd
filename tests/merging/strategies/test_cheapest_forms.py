"""Tests of the search for forms: the fewest bits that hold, few measurements, and compression that competes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import torch
from quiet_journal import Quiet

from gemel.merging.forms.costs import LayerCost
from gemel.merging.forms.form_map import Form, FormMap, saved_bytes
from gemel.merging.layers.layers import Layer
from gemel.merging.layers.problem import Problem
from gemel.merging.layers.sharing import SharingMap, Use
from gemel.merging.search.search import Found, Job, search
from gemel.merging.strategies import Search, SearchSettings, Strategy
from gemel.merging.strategies.cheapest_forms import FormCosts, with_forms
from gemel.merging.training.training import Recipe
from gemel.merging.training.trial import Outcome, Trial

LAYERS = 8
SHAPE, SIZE = (16, 16, 3, 3), 16 * 16 * 9 * 4
MODELS = "abcd"
PROBLEM = Problem(
    {model: tuple(Layer(model, str(i), "conv", SHAPE, SIZE, False) for i in range(LAYERS)) for model in MODELS}
)
ERRORS = {0: 0.5, 1: 0.3, 2: 0.2, 4: 0.05, 8: 0.005}


def costs(model: str, base: bool, errors: Mapping[int, float] | None = None) -> list[LayerCost]:
    """Return the costs of a model's layers. Layer i has errors (i + 1) times those of ``errors``."""
    return [
        LayerCost(
            Use(model, f"{i}.weight"),
            SHAPE,
            str(i) if base else None,
            {bits: error * (i + 1) for bits, error in (errors or ERRORS).items()},
        )
        for i in range(LAYERS)
    ]


def all_costs(families: Sequence[str] = (MODELS,), own: str = MODELS) -> FormCosts:
    """Return the costs of families, each a string of model names, and of codes of own weights."""
    return FormCosts(
        tuple({model: costs(model, True) for model in family} for family in families),
        {model: costs(model, False) for model in own},
    )


def idle(problem: Problem, settings: SearchSettings) -> Search:
    """Search for no sharing."""
    yield from ()


def run(
    holds: Callable[[Trial, str], bool],
    plan: Strategy = idle,
    made: FormCosts | None = None,
    **settings: Any,
) -> tuple[Found, list[Trial]]:
    """Run a search for forms in which ``holds`` says whether a model reaches its goals in a trial.

    Without a strategy nothing is retrained, unless ``settings`` say so.
    """
    tried: list[Trial] = []

    def execute(jobs: Sequence[Job]) -> Generator[Outcome, None, None]:
        for job in jobs:
            tried.append(job.trial)
            met = frozenset(name for name in job.trial.learners if holds(job.trial, name))
            scores = {name: 1.0 if name in met else 0.5 for name in job.trial.learners}
            states = {} if job.trial.measure else {name: dict(job.states[name]) for name in job.trial.learners}
            yield Outcome(scores, scores, met, 0, 0.0, "start", {}, states)

    originals = {model: {f"{i}.weight": torch.tensor([float(i)]) for i in range(LAYERS)} for model in MODELS}
    settings = {"retrain": plan is not idle, **settings}
    steps = with_forms(plan, PROBLEM, SearchSettings(**settings), made or all_costs())
    return search(PROBLEM, steps, originals, execute, Quiet()), tried


def bits_of(forms: FormMap, model: str) -> list[int]:
    """Return the bits of a model's layers, in their order."""
    return [form.bits for use, form in forms.forms if use.model == model]


def at_least(least: Mapping[str, Sequence[int]]) -> Callable[[Trial, str], bool]:
    """Return a judge that asks for some bits in each layer of a model; weights without a form are as good as any."""

    def holds(trial: Trial, model: str) -> bool:
        forms = trial.forms.by_use
        wanted = least[model]
        return all(forms[use].bits >= wanted[i] for i in range(LAYERS) if (use := Use(model, f"{i}.weight")) in forms)

    return holds


def test_each_model_gets_the_fewest_bits_that_hold() -> None:
    least = {"a": [0] * LAYERS, "b": [2] * LAYERS, "c": [1] * LAYERS, "d": [4] * LAYERS}
    found, _ = run(at_least(least))
    for model, wanted in least.items():
        assert bits_of(found.forms, model) == wanted


def test_only_the_layers_that_need_them_get_more_bits() -> None:
    # The last layers have the largest errors; two of them need two bits, for all others one bit is enough.
    least = {model: [1, 1, 1, 1, 1, 1, 2, 2] for model in MODELS}
    found, tried = run(at_least(least))
    assert bits_of(found.forms, "a") == [1, 1, 1, 1, 1, 1, 2, 2]
    measured = [trial for trial in tried if trial.measure and trial.learners == {"a"} and trial.forms.differences.forms]
    assert len(measured) <= 3 + 4


def test_a_model_that_no_difference_serves_keeps_its_weights() -> None:
    least = {**dict.fromkeys("abc", [1] * LAYERS), "d": [99] * LAYERS}
    found, _ = run(at_least(least))
    assert found.forms.models == set("abc")


def test_differences_that_save_nothing_are_not_committed() -> None:
    # One model that holds with 8 bits needs more bytes with its base than without.
    made = FormCosts(({"a": costs("a", True)},))
    found, _ = run(at_least({"a": [8] * LAYERS}), made=made)
    assert not found.forms.forms
    assert not any(verdict.accepted for verdict in found.verdicts)


def test_a_layer_that_equals_its_base_has_no_codes() -> None:
    frozen = costs("a", True)
    frozen[3] = LayerCost(frozen[3].use, SHAPE, "3", dict.fromkeys(ERRORS, 0.0))
    made = FormCosts(({"a": frozen, "b": costs("b", True), "c": costs("c", True)},))
    found, _ = run(
        lambda trial, model: True if not trial.forms.forms else min(bits_of(trial.forms, "b") or [2]) >= 2, made=made
    )
    assert bits_of(found.forms, "a")[3] == 0


def test_models_that_fail_together_are_left_out_of_the_commit() -> None:
    def holds(trial: Trial, model: str) -> bool:
        return trial.measure or model != "b"

    found, _ = run(holds)
    assert found.forms.models == set("acd")


def test_compression_is_measured_and_not_kept_by_default() -> None:
    found, tried = run(lambda trial, model: True, made=FormCosts((), all_costs().own))
    assert not found.forms.forms
    assert {(trial.base, trial.measure) for trial in tried} == {("original", True)}
    assert len(tried) == len(MODELS)


def test_compression_is_kept_where_the_user_wants_it() -> None:
    least = {"a": [4] * LAYERS, "b": [8] * LAYERS, "c": [4] * 6 + [8] * 2, "d": [99] * LAYERS}
    found, _ = run(at_least(least), made=FormCosts((), all_costs().own), compress=True)
    assert [bits_of(found.forms, model) for model in MODELS] == [[4] * 8, [8] * 8, [4] * 6 + [8] * 2, []]


def test_compression_replaces_differences_only_where_it_saves_more() -> None:
    def two_or_eight(trial: Trial, model: str) -> bool:
        return all(form.bits >= (8 if form.base is None else 1) for _, form in trial.forms.forms)

    found, _ = run(two_or_eight, compress=True)
    # Four models: a base and four times one bit are 36 bits for each weight, four times eight bits are 32.
    assert {form.base for _, form in found.forms.forms} == {None}
    made = all_costs()
    found, _ = run(
        lambda trial, model: two_or_eight(trial, model) and not trial.forms.own.forms, made=made, compress=True
    )
    assert all(form.base is not None for _, form in found.forms.forms)


def share_all(problem: Problem, settings: SearchSettings) -> Search:
    """Share all layers of all models in one training."""
    slots = [[Use(model, f"{i}.weight") for model in MODELS] for i in range(LAYERS)]
    yield [Trial("all", SharingMap().joined(slots), frozenset(MODELS), recipe=Recipe(1))]


def test_sharing_that_saves_more_replaces_differences() -> None:
    found, _ = run(lambda trial, model: trial.recipe is not None or min(bits_of(trial.forms, model)) >= 2, share_all)
    assert not found.forms.forms
    assert len(found.sharing.slots) == LAYERS


def share_one(problem: Problem, settings: SearchSettings) -> Search:
    """Share one layer of all models in one training."""
    slot = [Use(model, "0.weight") for model in MODELS]
    (verdict,) = yield [Trial("one", SharingMap().joined([slot]), frozenset(MODELS), recipe=Recipe(1))]
    assert verdict.outcome.ended == "saves less"


def test_a_training_that_could_save_less_than_the_differences_is_not_run() -> None:
    found, tried = run(lambda trial, model: True, share_one)
    assert not any(trial.recipe for trial in tried)
    assert found.forms.models == set(MODELS)


def test_differences_of_one_bit_are_trained_where_more_bits_were_needed() -> None:
    def holds(trial: Trial, model: str) -> bool:
        if trial.recipe is not None:
            return model != "b"
        return min(bits_of(trial.forms, model)) >= (1 if model == "a" else 2)

    found, tried = run(holds, retrain=True)
    assert [bits_of(found.forms, model) for model in MODELS] == [[1] * 8, [2] * 8, [1] * 8, [1] * 8]
    (trained,) = [trial for trial in tried if trial.recipe]
    # A model that needs no more than one bit without training is not trained.
    assert trained.learners == set("bcd")
    assert trained.base == "original"


def test_without_retraining_the_strategy_does_not_run() -> None:
    _, tried = run(lambda trial, model: True, share_all, retrain=False)
    assert not any(trial.recipe for trial in tried)


def test_shared_tensors_are_compressed_to_what_all_their_models_allow() -> None:
    def holds(trial: Trial, model: str) -> bool:
        least = 8 if model == "b" else 4
        return all(form.bits >= least for use, form in trial.forms.forms if use.model == model)

    found, _ = run(holds, share_all, made=FormCosts((), all_costs().own), compress=True)
    assert len(found.sharing.slots) == LAYERS
    assert {form for _, form in found.forms.forms} == {Form(8)}
    assert saved_bytes(PROBLEM, found.sharing, found.forms) > 0.9 * PROBLEM.bytes
