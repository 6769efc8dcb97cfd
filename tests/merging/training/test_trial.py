"""Tests of trials: starting weights, retraining, accuracies, and modules that are as before afterwards."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from judgements import judgement
from torch import Tensor, nn

from gemel.errors import UnjudgedError
from gemel.merging.forms.form_map import Form, FormMap
from gemel.merging.forms.quantize import Base, materialize
from gemel.merging.judging.judgement import Judgement
from gemel.merging.layers.sharing import SharingMap, Use
from gemel.merging.training import deadline as deadlines
from gemel.merging.training import subjects as subjects_module
from gemel.merging.training import training
from gemel.merging.training import trial as trials
from gemel.merging.training.deadline import TimeUpError
from gemel.merging.training.subjects import Subject
from gemel.merging.training.training import Recipe, TrainingProgress
from gemel.merging.training.trial import Outcome, Start, Trial, TrialRunner, some
from gemel.workload.data import Images

MakeSubject = Callable[..., Subject]
ALL = SharingMap().joined([Use(model, f"conv{index}.weight") for model in "abc"] for index in (1, 2))


@pytest.fixture
def subjects(subject: MakeSubject) -> dict[str, Subject]:
    """Return three models with dropout; only its original weights reach the target of ``c``."""
    targets = {"a": (0.95,), "b": (0.95,), "c": (1.0,)}
    return {name: subject(name, Dropping, seed=index, targets=targets[name]) for index, name in enumerate("abc")}


class Dropping(nn.Module):
    """A model with two convolutions, BatchNorms, dropout and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(6)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(6, 3)

    def forward(self, image: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.conv1(image)))
        x = torch.relu(self.norm2(self.conv2(x)))
        scores: Tensor = self.head(self.dropout(x.mean((2, 3))))
        return scores


def states(subjects: dict[str, Subject]) -> dict[str, dict[str, Tensor]]:
    """Return model name -> copy of its weights."""
    return {name: each.state() for name, each in subjects.items()}


def trial(learners: str = "abc", **fields: Any) -> Trial:
    """Return a trial that shares both convolutions between all models and trains four steps."""
    return Trial("test", ALL, frozenset(learners), **{"recipe": Recipe(4, batch=32, checks=0), **fields})


def comparable(outcome: Outcome) -> Outcome:
    """Return an outcome without its duration and weights."""
    return replace(outcome, seconds=0.0, states={})


def equal(first: Outcome, second: Outcome) -> bool:
    """Check that two outcomes are equal, weights included and durations excluded."""
    return comparable(first) == comparable(second) and all(
        torch.equal(value, second.states[model][name])
        for model, state in first.states.items()
        for name, value in state.items()
    )


@pytest.mark.parametrize("kind", ["donor", "first", "average"])
def test_trials_leave_nothing_behind(kind: Any, subjects: dict[str, Subject]) -> None:
    originals = states(subjects)
    tried = trial(start=Start(kind, ("b", "a", "c")))
    first = TrialRunner(subjects)(tried, originals, SharingMap())
    runner = TrialRunner(subjects)
    # Run other trials in between: other sharing, frozen models, a failure and an interrupt. Draw random numbers, too.
    runner(trial("ab", start=Start("donor", ("a",)), recipe=None), originals, SharingMap())
    runner(trial("a"), originals, SharingMap())
    runner(trial(recipe=Recipe(4, rate=1e30, batch=32)), originals, SharingMap())
    with pytest.raises(KeyboardInterrupt):
        runner(tried, originals, SharingMap(), watch=stop)
    torch.rand(7)
    assert equal(runner(tried, originals, SharingMap()), first)


def test_a_trial_with_forms_reports_weights_and_codes_that_agree(subjects: dict[str, Subject]) -> None:
    originals = states(subjects)
    base = {"base": Base(originals["a"]["conv2.weight"] + 0.01)}
    for each in subjects.values():
        each.bases = base
    # No accuracy reaches the goal of this model, so it is trained.
    use = Use("c", "conv2.weight")
    forms = FormMap().joined({use: Form(2, "base")})
    for recipe in (None, Recipe(4, batch=32, checks=0)):
        wanted = Trial("test", SharingMap(), frozenset("c"), Start("keep"), recipe, forms=forms)
        outcome = TrialRunner(subjects)(wanted, originals, SharingMap())
        coded = outcome.codes[use]
        assert torch.equal(outcome.states["c"]["conv2.weight"], materialize(coded, base["base"].kernel))
        assert torch.equal(outcome.states["c"]["conv1.weight"], originals["c"]["conv1.weight"]) is (recipe is None)
    # Training moved the plain weight, not only the others.
    untrained = TrialRunner(subjects)(replace(wanted, recipe=None), originals, SharingMap())
    assert not torch.equal(untrained.codes[use].scale, coded.scale)


def test_a_trial_that_only_measures_returns_no_weights(subjects: dict[str, Subject]) -> None:
    wanted = Trial("test", SharingMap(), frozenset("b"), Start("keep"), measure=True)
    outcome = TrialRunner(subjects)(wanted, states(subjects), SharingMap())
    assert outcome.states == {}
    assert outcome.codes == {}
    assert outcome.relative == {"b": 1.0}


def stop(progress: TrainingProgress) -> None:
    """Interrupt a training, as Ctrl-C does."""
    raise KeyboardInterrupt


def test_the_callers_random_numbers_are_left_alone(subjects: dict[str, Subject]) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    TrialRunner(subjects)(trial(), states(subjects), SharingMap())
    assert torch.equal(torch.rand(3), expected)


def test_what_is_shared_is_equal_afterwards(subjects: dict[str, Subject]) -> None:
    outcome = TrialRunner(subjects)(trial(), states(subjects), SharingMap())
    assert outcome.samples == 3 * 4 * 32
    for slot in ALL.slots:
        first, *others = (outcome.states[use.model][use.parameter] for use in slot)
        assert all(torch.equal(first, other) for other in others)
    assert not torch.equal(outcome.states["a"]["norm1.weight"], outcome.states["b"]["norm1.weight"])
    assert "c" not in outcome.met
    # Strain is measured for models that met their goals too.
    assert {use.model for use in outcome.strain} == set("abc")


@pytest.mark.parametrize("kind", ["donor", "first", "average"])
@pytest.mark.parametrize("order", [("c", "b", "a"), ()])
def test_models_that_do_not_learn_keep_their_weights_and_lend_them(
    kind: Any, order: tuple[str, ...], subjects: dict[str, Subject]
) -> None:
    originals = states(subjects)
    outcome = TrialRunner(subjects)(trial("bc", start=Start(kind, order)), originals, SharingMap())
    assert set(outcome.states) == set("bc")
    assert all(torch.equal(value, originals["a"][name]) for name, value in subjects["a"].state().items())
    for name in "bc":
        assert torch.equal(outcome.states[name]["conv1.weight"], originals["a"]["conv1.weight"])
    assert not torch.equal(outcome.states["b"]["head.weight"], originals["b"]["head.weight"])


def test_what_is_shared_already_is_not_donated_again(subjects: dict[str, Subject]) -> None:
    originals = states(subjects)
    shared = SharingMap().joined([ALL.slots[0]])
    for name in "abc":
        originals[name]["conv1.weight"] = torch.ones(6, 3, 3, 3)
    outcome = TrialRunner(subjects)(trial(start=Start("first", ("b",)), recipe=None), originals, shared)
    assert torch.equal(outcome.states["a"]["conv1.weight"], torch.ones(6, 3, 3, 3))
    assert torch.equal(outcome.states["a"]["conv2.weight"], originals["b"]["conv2.weight"])


def test_a_start_that_is_good_enough_is_not_trained(subjects: dict[str, Subject]) -> None:
    same = {name: subjects["a"].state() for name in "ab"} | {"c": subjects["c"].state()}
    nothing = Trial("test", SharingMap(), frozenset("a"), Start("keep"), Recipe(4))
    outcome = TrialRunner(subjects)(nothing, same, SharingMap(), watch=stop)
    assert (outcome.ended, outcome.samples, outcome.met) == ("start", 0, frozenset("a"))
    assert set(outcome.states) == {"a"}


def test_a_look_is_not_trained_whatever_comes_of_it(subjects: dict[str, Subject]) -> None:
    outcome = TrialRunner(subjects)(trial(recipe=None), states(subjects), SharingMap(), watch=stop)
    assert (outcome.ended, outcome.samples, outcome.strain) == ("start", 0, {})
    assert set(outcome.accuracies) == set(outcome.relative) == set("abc")


def test_a_trial_that_goes_wrong_says_so(subjects: dict[str, Subject]) -> None:
    originals = states(subjects)
    nn.init.constant_(subjects["b"].model.get_parameter("head.weight"), math.nan)
    originals["b"] = subjects["b"].state()
    outcome = TrialRunner(subjects)(trial(start=Start("first")), originals, SharingMap())
    assert outcome.ended == "b: the loss is nan at step 1"
    assert (outcome.met, outcome.states) == (frozenset(), {})
    assert all(math.isfinite(value) for value in outcome.accuracies.values())


def test_what_all_images_show_at_the_end_counts(subject: MakeSubject, monkeypatch: pytest.MonkeyPatch) -> None:
    made, found = subject("a"), iter([0.5, 1.0, 0.5, 0.96])
    monkeypatch.setattr(trials, "judgements_of", lambda *_, **__: {"a": judgement(next(found))})
    for ended in ("met", "done"):
        few = Trial("test", SharingMap(), frozenset("a"), Start("keep"), Recipe(1, batch=32, checks=0, spare=0.5))
        outcome = TrialRunner({"a": made})(few, {"a": made.state()}, SharingMap())
        assert (outcome.ended, outcome.met) == (ended, frozenset("a"))


def test_every_query_of_a_model_must_meet(subject: MakeSubject) -> None:
    made = subject("a", targets=(0.1, 1.0))
    original = made.state()
    state = {name: torch.zeros_like(value) if "head" in name else value for name, value in original.items()}
    nothing = Trial("test", SharingMap(), frozenset("a"), Start("keep"))
    outcome = TrialRunner({"a": made})(nothing, {"a": state}, SharingMap())
    assert outcome.accuracies["a"] == outcome.accuracies["a1"] < 1
    assert outcome.met == frozenset()
    assert TrialRunner({"a": made})(nothing, {"a": original}, SharingMap()).met == frozenset("a")


class Tied(nn.Module):
    """A model whose two convolutions hold one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        self.conv1 = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.conv2.weight = self.conv1.weight
        self.head = nn.Linear(6, 3)

    def forward(self, image: Tensor) -> Tensor:
        scores: Tensor = self.head(torch.relu(self.conv2(torch.relu(self.conv1(self.stem(image))))).mean((2, 3)))
        return scores


def test_what_is_tied_inside_a_model_stays_tied(subject: MakeSubject) -> None:
    made = {"a": subject("a", Dropping), "b": subject("b", Tied, seed=1)}
    # A weight that two layers hold counts as one layer.
    assert [layer.name for layer in made["b"].layers] == ["stem", "conv1", "head"]
    sharing = SharingMap().joined([[Use("a", "conv2.weight"), Use("b", "conv1.weight")]])
    runner, originals = TrialRunner(made), states(made)
    tried = Trial("test", sharing, frozenset("ab"), Start("donor", ("a", "b")), Recipe(2, batch=32))
    outcome = runner(tried, originals, SharingMap())
    found = outcome.states["b"]
    assert torch.equal(found["conv1.weight"], found["conv2.weight"])
    assert torch.equal(found["conv1.weight"], outcome.states["a"]["conv2.weight"])
    runner(Trial("test", SharingMap(), frozenset("b"), Start("keep")), originals, SharingMap())
    model = made["b"].model
    assert isinstance(model, Tied)
    assert model.conv1.weight is model.conv2.weight
    assert torch.equal(model.conv1.weight, originals["b"]["conv1.weight"])


def test_few_images_make_batches_of_one_size(subject: MakeSubject) -> None:
    """Check that images are split into batches of nearly equal size.

    A last batch of one image would have no variance, and a batch of few images a poor estimate that counts as much.
    """
    made = subject("a", count=129)
    assert [len(batch) for batch in some(made, 1280, 0)] == [65, 64]
    assert sum(len(batch) for batch in some(made, 100, 0)) == 100


def test_a_donor_that_is_given_nothing_stays_as_it_is(subjects: dict[str, Subject]) -> None:
    between = SharingMap().joined(slot for slot in ([Use("a", "conv1.weight"), Use("b", "conv1.weight")],))
    originals = states(subjects)
    look = Trial("test", between, frozenset("ab"), Start("donor", ("a", "b")))
    found = TrialRunner(subjects)(look, originals, SharingMap()).states
    assert all(torch.equal(value, originals["a"][name]) for name, value in found["a"].items())
    assert torch.equal(found["b"]["conv1.weight"], originals["a"]["conv1.weight"])
    assert not torch.equal(found["b"]["head.weight"], originals["b"]["head.weight"])


def test_a_glance_that_tells_nothing_is_a_look_at_all(subject: MakeSubject, monkeypatch: pytest.MonkeyPatch) -> None:
    made = subject("a")
    nn.init.constant_(made.model.get_parameter("conv1.weight"), 0.1)
    seen: list[int] = []
    known = made.held[0].task.evidence

    def evidence(self: object, answers: list[int], teacher: list[int], images: Images) -> Any:
        seen.append(len(images))
        if len(images) == 3:
            raise UnjudgedError("no object")
        return known(answers, teacher, images)

    monkeypatch.setattr(type(made.held[0].task), "evidence", evidence)
    assert made.judged(limit=3)["a"].own.images == len(made.held[0].choose.own.images)
    assert seen == [3, len(made.held[0].choose.own.images)]


def test_a_model_that_meets_its_target_by_its_value_alone_has_not_met_it(
    subject: MakeSubject, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = subject("a")
    for low, met in ((0.94, frozenset()), (0.95, frozenset("a"))):
        monkeypatch.setattr(trials, "judgements_of", lambda *_, low=low, **__: {"a": judgement(0.97, low)})
        outcome = TrialRunner({"a": made})(
            Trial("test", SharingMap(), frozenset("a"), Start("keep")), {"a": made.state()}, SharingMap()
        )
        assert outcome.met == met
        assert outcome.relative == {"a": 0.97}


@pytest.mark.parametrize(("relative", "looks"), [(0.94, [500]), (0.95, [500, None])])
def test_a_glance_at_the_target_is_followed_by_a_look_at_all(
    relative: float, looks: list[int | None], subject: MakeSubject, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, seen = subject("a"), list[int | None]()

    def judgements(*_: object, limit: int | None = None) -> Any:
        # The lower bound of a few images is below the target whatever they show.
        seen.append(limit)
        return {"a": judgement(relative, relative if limit is None else 0.9)}

    monkeypatch.setattr(trials, "judgements_of", judgements)
    tried = Trial("test", SharingMap(), frozenset("a"), Start("keep"))
    outcome = TrialRunner({"a": made})(tried, {"a": made.state()}, SharingMap())
    assert seen == looks
    assert outcome.met == (frozenset("a") if relative >= 0.95 else frozenset())


@pytest.mark.parametrize("recipe", [None, Recipe(4, batch=32)])
@pytest.mark.parametrize("runs", [0, 1, 5])
def test_starting_weights_are_given_up_at_the_deadline(
    recipe: Recipe | None, runs: int, subjects: dict[str, Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    originals, now = states(subjects), 0.0
    seen: list[float] = []

    def clock() -> float:
        nonlocal now
        now += 1
        seen.append(now)
        return now

    for module in (trials, deadlines):
        monkeypatch.setattr(module, "monotonic", clock)
    runner, tried = TrialRunner(subjects), trial(start=Start("donor", ("b", "a", "c")), recipe=recipe)
    # The clock advances each time that it is read: at the trial's begin, and before each batch of a model.
    with pytest.raises(TimeUpError):
        runner(tried, originals, SharingMap(), deadline=runs + 1.5)
    assert len(seen) == runs + 2
    monkeypatch.undo()
    # The trial left nothing behind.
    assert equal(runner(tried, originals, SharingMap()), TrialRunner(subjects)(tried, originals, SharingMap()))
    assert not any(each.student._forward_pre_hooks for each in subjects.values())


def test_a_training_that_has_begun_is_measured_after_the_deadline(
    subjects: dict[str, Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    late = False

    def watch(progress: TrainingProgress) -> None:
        nonlocal late
        late = True

    for module in (trials, deadlines, training):
        monkeypatch.setattr(module, "monotonic", lambda: 100.0 if late else 0.0)
    outcome = TrialRunner(subjects)(trial(), states(subjects), SharingMap(), deadline=50.0, watch=watch)
    assert outcome.ended == "time"
    assert set(outcome.states) == set("abc")


def test_a_model_that_is_judged_again_holds_by_its_value(
    subjects: dict[str, Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few new images leave a wide interval, which is no reason to take shared weights away."""
    values = {"choose": {"a": 0.97, "b": 0.94, "c": 1.0}, "confirm": {"a": 0.96, "b": 1.0, "c": 0.93}}

    def judgements(learners: Iterable[Subject], exam: str = "choose", **_: object) -> dict[str, Judgement]:
        return {each.name: judgement(values[exam][each.name], 0.9) for each in learners}

    for module in (trials, subjects_module):
        monkeypatch.setattr(module, "judgements_of", judgements)
    runner, before = TrialRunner(subjects, 0), states(subjects)
    again = Trial("again", SharingMap(), frozenset("abc"), Start("keep"), measure=True, again=True)
    outcome = runner(again, before, SharingMap(), math.inf)
    # "c" holds on the images that choose only: it would not be confirmed, and would have no time left to come back.
    assert outcome.met == {"a"}
    assert outcome.relative == {"a": 0.96, "b": 0.94, "c": 0.93}
    assert runner(replace(again, again=False), before, SharingMap(), math.inf).met == set()
