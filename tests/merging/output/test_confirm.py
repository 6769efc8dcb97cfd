"""Test that nothing is written that does not hold on images which chose nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import cast

import pytest
import torch
from judgements import judgement
from torch import nn

from gemel.merging.forms.apply import FormCoder
from gemel.merging.forms.form_map import Form, FormMap
from gemel.merging.forms.quantize import materialize
from gemel.merging.layers.problem import Problem
from gemel.merging.layers.sharing import SharingMap, Use
from gemel.merging.output.confirm import Confirmer
from gemel.merging.output.report import Reporter
from gemel.merging.search.search import Found
from gemel.merging.strategies import Verdict
from gemel.merging.training.subjects import State, Subject
from gemel.merging.training.trial import Outcome, Start, Trial

ALL = SharingMap().joined([[Use(model, "conv2.weight") for model in "abc"]])


@pytest.fixture
def subjects(subject: Callable[..., Subject]) -> dict[str, Subject]:
    """Return three models."""
    return {name: subject(name, seed=index) for index, name in enumerate("abc")}


def shared(subjects: dict[str, Subject]) -> Found:
    """Return a search that committed one shared weight and changed every head a little."""
    states = {name: each.state() for name, each in subjects.items()}
    for state in states.values():
        state["conv2.weight"] = states["a"]["conv2.weight"]
        state["head.bias"] += 1
    return Found(states, ALL)


def problem_of(subjects: dict[str, Subject]) -> Problem:
    """Return the layers of all models."""
    queries = {name: (name,) for name in subjects}
    return Problem({name: each.layers for name, each in subjects.items()}, 0, queries)


def states_of(subjects: dict[str, Subject]) -> dict[str, State]:
    """Return model name -> weights."""
    return {name: each.state() for name, each in subjects.items()}


def fail(monkeypatch: pytest.MonkeyPatch, *models: str) -> None:
    """Let some models miss their targets on the images that confirm, and all others pass."""

    def judgements(self: Confirmer, model: str, state: State) -> dict[str, object]:
        return {model: judgement(0.97, 0.9 if model in models else 0.96)}

    monkeypatch.setattr(Confirmer, "judgements", judgements)


def test_who_fails_gets_the_original_weights_and_the_others_keep_theirs(
    subjects: dict[str, Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    originals = states_of(subjects)
    found, confirmer = shared(subjects), Confirmer(problem_of(subjects), subjects, originals)
    fail(monkeypatch, "b")
    written = confirmer.confirmed(found)
    assert written.sharing == ALL.of({"a", "c"})
    assert all(torch.equal(value, originals["b"][name]) for name, value in written.states["b"].items())
    assert [written.states[name] is found.states[name] for name in "abc"] == [True, False, True]
    # The search goes on from what it has: it is not told.
    assert found.sharing == ALL


def test_a_model_without_partners_gets_its_original_weights(
    subjects: dict[str, Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    originals = states_of(subjects)
    found, confirmer = shared(subjects), Confirmer(problem_of(subjects), subjects, originals)
    fail(monkeypatch, "b", "c")
    written = confirmer.confirmed(found)
    assert written.sharing == SharingMap()
    assert torch.equal(written.states["a"]["head.bias"], originals["a"]["head.bias"])


def part_of(found: Found, *models: str, change: float) -> Found:
    """Return another step of a search, in which only some models share a weight, with heads of their own."""
    states = {name: {**state, "head.bias": state["head.bias"] + change} for name, state in found.states.items()}
    return replace(found, states=states, sharing=ALL.of(set(models)))


def test_all_go_back_to_what_was_confirmed_before_if_it_saves_more(
    subjects: dict[str, Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    confirmer = Confirmer(problem_of(subjects), subjects, states_of(subjects))
    last = shared(subjects)
    first, more = part_of(last, "a", "b", change=1), part_of(last, "b", "c", change=2)
    fail(monkeypatch)
    assert confirmer.confirmed(first).sharing == first.sharing
    # All three share, but two of them fail: nothing would be left.
    fail(monkeypatch, "b", "c")
    written = confirmer.confirmed(last)
    assert written.sharing == first.sharing
    assert all(written.states[name] is first.states[name] for name in "abc")
    # What models get after they failed is written if it passes, but not gone back to: it was tested too often.
    fail(monkeypatch)
    assert confirmer.confirmed(more).sharing == more.sharing
    fail(monkeypatch, "b", "c")
    assert confirmer.confirmed(last).sharing == first.sharing
    # One fails: what is left saves as much, and is newer.
    fail(monkeypatch, "b")
    written = confirmer.confirmed(last)
    assert written.sharing == ALL.of({"a", "c"})
    assert written.states["a"] is last.states["a"]


def test_the_report_says_who_went_back(subjects: dict[str, Subject], monkeypatch: pytest.MonkeyPatch) -> None:
    reporter, last = Reporter(problem_of(subjects), subjects, states_of(subjects), "together"), shared(subjects)
    fail(monkeypatch)
    reporter.confirmed(part_of(last, "a", "b", change=1))
    fail(monkeypatch, "b", "c")
    report = reporter.report(last, finished=True)
    notes = {name: query.notes[0] for name, query in report.queries.items()}
    earlier = "it has the weights of an earlier step, which are confirmed"
    assert notes["a"].startswith("not merged, as its partners were not confirmed") and earlier in notes["a"]
    assert notes["b"].startswith("not confirmed") and earlier in notes["b"]
    assert "it has its original weights" in notes["c"]
    assert {use.query for tensor in report.shared for use in tensor.uses} == {"a", "b"}


def test_models_of_an_earlier_merge_stay_unless_a_value_is_below_the_target(
    subjects: dict[str, Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    confirmer = Confirmer(problem_of(subjects), subjects, states_of(subjects))
    found = replace(shared(subjects), retained=frozenset("ab"))
    # The lower bound of all is below the target of 0.95; the value of b is, too.
    values = {"a": 0.97, "b": 0.94, "c": 0.97}
    monkeypatch.setattr(confirmer, "judgements", lambda model, state: {model: judgement(values[model], 0.9)})
    written = confirmer.confirmed(found)
    assert set(written.models) == set(written.retained) == {"a"}


def test_the_report_says_who_was_not_confirmed_and_what_would_help(
    subjects: dict[str, Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    reporter, found = Reporter(problem_of(subjects), subjects, states_of(subjects), "together"), shared(subjects)
    fail(monkeypatch, "b")
    report = reporter.report(found, finished=True)
    assert (report.queries["a"].relative, report.queries["a"].notes) == (0.97, ())
    (note,) = report.queries["b"].notes
    assert note.startswith("not confirmed: own images 0.970 (0.900 to 1.000, n=100); it has its original weights")
    assert report.queries["b"].relative == 1.0
    assert {use.query for tensor in report.shared for use in tensor.uses} == {"a", "c"}


def test_weights_are_judged_once_by_the_images_that_confirm(
    subjects: dict[str, Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def judged(self: Subject, exam: str, limit: int | None = None) -> dict[str, object]:
        asked.append(exam)
        return {self.name: judgement(1.0)}

    monkeypatch.setattr(Subject, "judged", judged)
    found, confirmer = shared(subjects), Confirmer(problem_of(subjects), subjects, states_of(subjects))
    for _ in range(2):
        confirmer.confirmed(found)
    assert asked == ["confirm"] * 3


def looked(subjects: dict[str, Subject], *bits: int, committed: int) -> Found:
    """Return a search in which model a held its target with codes of some numbers of bits, one of them committed."""
    use = Use("a", "conv2.weight")
    verdicts = [
        Verdict(
            Trial("", SharingMap(), frozenset("a"), Start("keep"), base="original", forms=one, measure=True),
            Outcome({}, {}, frozenset("a"), 0, 0.0, "start"),
            False,
            SharingMap(),
        )
        for each in bits
        if (one := FormMap().joined({use: Form(each)}))
    ]
    states = {name: each.state() for name, each in subjects.items()}
    forms = FormMap().joined({use: Form(committed)})
    coder = FormCoder({"a": cast("nn.Module", subjects["a"].student.model)}, forms, {})
    states["a"] = subjects["a"].state()
    return Found(states, verdicts=verdicts, forms=forms, codes=dict(coder.codes))


@pytest.mark.parametrize(
    ("holds", "bits"),
    [({8, 4, 2, 1}, 1), ({8, 4, 2}, 2), ({8, 4}, 4), ({8, 2, 1}, 8), ({4, 2, 1}, None), (set(), None)],
)
def test_a_model_gets_the_last_forms_that_hold(
    holds: set[int], bits: int | None, subjects: dict[str, Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    confirmer = Confirmer(problem_of(subjects), subjects, states_of(subjects))
    original = subjects["a"].state()["conv2.weight"]
    found = looked(subjects, 4, 8, 2, committed=1)
    subjects["a"].restore({**subjects["a"].state(), "conv2.weight": original})

    def judgements(self: Confirmer, model: str, state: State) -> dict[str, object]:
        # Codes of b bits have 2 ** b values at most in a channel.
        values = max(len(row.unique()) for row in state["conv2.weight"].flatten(1))
        count = next(each for each in (1, 2, 4, 8) if values <= 2**each)
        return {model: judgement(0.97, 0.96 if count in holds else 0.9)}

    monkeypatch.setattr(Confirmer, "judgements", judgements)
    written = confirmer.confirmed(found)
    kept = written.forms.by_use.get(Use("a", "conv2.weight"))
    assert (kept and kept.bits) == bits
    if kept is None:
        assert torch.equal(written.states["a"]["conv2.weight"], original)
    else:
        coded = written.codes[Use("a", "conv2.weight")]
        assert torch.equal(materialize(coded), written.states["a"]["conv2.weight"])
        assert written.states["a"] is found.states["a"] if bits == 1 else coded.bits == bits
    # The student has the weights that it had.
    assert torch.equal(subjects["a"].state()["conv2.weight"], original)


def test_a_model_that_shares_in_vain_goes_back_to_the_forms_that_held(
    subjects: dict[str, Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    confirmer = Confirmer(problem_of(subjects), subjects, states_of(subjects))
    original = subjects["a"].state()["conv2.weight"]
    found = looked(subjects, 4, 2, committed=1)
    subjects["a"].restore({**subjects["a"].state(), "conv2.weight": original})

    def judgements(self: Confirmer, model: str, state: State) -> dict[str, object]:
        values = max(len(row.unique()) for row in state["conv2.weight"].flatten(1))
        return {model: judgement(0.97, 0.96 if 4 < values <= 16 else 0.9)}

    monkeypatch.setattr(Confirmer, "judgements", judgements)
    assert [form.bits for _, form in confirmer.confirmed(found).forms.forms] == [4]
    last = replace(shared(subjects), verdicts=found.verdicts)
    for _ in range(2):
        written = confirmer.confirmed(last)
        assert [form.bits for _, form in written.forms.forms] == [4]
        assert torch.equal(materialize(written.codes[Use("a", "conv2.weight")]), written.states["a"]["conv2.weight"])
    # A merge that is resumed finds the same.
    other = Confirmer(problem_of(subjects), subjects, states_of(subjects))
    other.go_on(replace(found, states={"a": found.states["a"]}), confirmer.failed)
    again = other.confirmed(last)
    assert again.forms == written.forms and again.sharing == written.sharing
    assert torch.equal(again.states["a"]["conv2.weight"], written.states["a"]["conv2.weight"])
