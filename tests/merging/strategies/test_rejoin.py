"""Tests of going on from an earlier merge: who leaves, what is tried to join again, and that nobody else changes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

import torch
from quiet_journal import Quiet

from gemel.merging.forms.costs import LayerCost
from gemel.merging.forms.form_map import Form, FormMap
from gemel.merging.layers.layers import Layer
from gemel.merging.layers.problem import Problem
from gemel.merging.layers.sharing import SharingMap, Use
from gemel.merging.search.forecast import forecast
from gemel.merging.search.search import Found, Job, search
from gemel.merging.strategies import SearchSettings
from gemel.merging.strategies.cheapest_forms import FormCosts
from gemel.merging.strategies.rejoin import Earlier, rejoin
from gemel.merging.training.trial import Outcome, Start, Trial

LAYERS, BYTES = 4, 4000
Met = Callable[[Trial], bool]


class Case:
    """Earlier merge of some models that share all layers, and a search that goes on from it.

    Args:
        models: names of the models, each a letter; those of one word share with each other.
        met: trial -> whether its only learner meets its targets.
        costs: errors of forms.
        forms: forms of the earlier merge.
        settings: settings of the search.
    """

    def __init__(
        self,
        *models: str,
        met: Met,
        costs: FormCosts | None = None,
        forms: FormMap | None = None,
        **settings: Any,
    ) -> None:
        names = "".join(models)
        layers = {
            name: tuple(Layer(name, str(place), f"conv{place}", (10, 100), BYTES, False) for place in range(LAYERS))
            for name in names
        }
        problem = Problem(layers)
        self._met = met
        self.originals = {
            name: {f"{place}.weight": torch.full((1,), float(ord(name))) for place in range(LAYERS)} for name in names
        }
        slots = [
            [Use(name, f"{place}.weight") for name in word] for word in models if not forms for place in range(LAYERS)
        ]
        merged = {name: {key: torch.ones(1) for key in state} for name, state in self.originals.items()}
        self.start = Found(
            merged, SharingMap().joined(slots), forms=forms or FormMap(), retained=frozenset(merged), codes={}
        )
        earlier = Earlier(self.start.sharing, self.start.forms, self.start.retained)
        self.jobs: list[Job] = []

        def begin() -> Any:
            return rejoin(problem, SearchSettings(**settings), costs or FormCosts(), earlier)

        self.first = forecast(begin, problem, (), self.start)
        self.found = search(problem, begin(), self.originals, self._execute, Quiet(), start=self.start)
        self.last = forecast(begin, problem, self.found.verdicts, self.start)

    def _execute(self, jobs: Sequence[Job]) -> Generator[Outcome, None, None]:
        for job in jobs:
            self.jobs.append(job)
            (name,) = job.trial.learners
            good = self._met(job.trial)
            value = 1.0 if good else 0.8
            shared = {use.parameter for use in job.trial.sharing.uses if use.model == name}
            state = {key: each if key in shared else each + 1 for key, each in job.states[name].items()}
            for slot in job.trial.sharing.slots:
                donor = next(use for use in slot if use.model != name)
                state |= {use.parameter: job.states[donor.model][donor.parameter] for use in slot if use.model == name}
            samples = 0 if job.trial.recipe is None else 64
            strain = {use: 1.0 for use in job.trial.sharing.uses if use.model == name and not good}
            ended = "start" if job.trial.recipe is None else "met" if good else "done"
            yield Outcome(
                {name: value}, {name: value}, job.trial.learners if good else frozenset(), samples, 0.0, ended, strain,
                {} if job.trial.measure else {name: state},
            )  # fmt: skip

    @property
    def titles(self) -> list[str]:
        """Titles of all trials, in order."""
        return [verdict.trial.group for verdict in self.found.verdicts]

    def unchanged(self, names: str) -> bool:
        """Check whether models have the very tensors that the earlier merge left them."""
        return all(self.found.states[name] is self.start.states[name] for name in names)


def falls(*names: str) -> Met:
    """Return that some models miss their targets with every weight, and the others meet them."""
    return lambda trial: not trial.learners & set(names)


def test_where_all_models_hold_nothing_is_tried() -> None:
    case = Case("abc", met=falls())
    assert case.titles == ["a, judged again", "b, judged again", "c, judged again"]
    assert all(job.trial.again and job.trial.measure for job in case.jobs)
    assert (case.found.sharing, case.found.samples) == (case.start.sharing, 0)
    assert case.unchanged("abc")
    # If all hold, the looks are all that is to come.
    assert (case.first.looks, case.first.trainings) == (3, 0)
    assert (case.last.looks, case.last.trainings) == (0, 0)


def test_a_model_that_is_right_again_without_training_shares_as_before() -> None:
    case = Case("abc", met=lambda trial: trial.learners != {"b"} or trial.start.kind == "refit")
    assert case.titles[3:] == ["original weights of b", "b as before, from its merged weights"]
    look = case.jobs[-1]
    assert (look.trial.base, look.trial.learners, look.trial.recipe) == ("earlier", frozenset("b"), None)
    # The look starts from the merged weights, although the model has its original weights by now.
    assert look.states["b"] is case.start.states["b"]
    assert look.shared == case.start.sharing.of("ac")
    assert case.found.sharing == case.start.sharing
    assert case.unchanged("ac") and not case.unchanged("b")


def test_a_model_that_finds_no_way_back_keeps_its_original_weights() -> None:
    case = Case("abc", met=falls("b"))
    assert [title for title in case.titles[3:] if "layers" not in title] == [
        "original weights of b",
        "b as before, from its merged weights",
        "b as before, from its merged weights",
    ]
    given_back = [job for job in case.jobs if "layers" in job.trial.group]
    # Training goes on from the weights of the last round.
    assert [(job.trial.base, job.trial.start.kind) for job in given_back] == [("last", "keep")] * 2
    assert all(job.trial.learners == {"b"} for job in case.jobs if job.trial.recipe)
    assert case.found.sharing == case.start.sharing.of("ac")
    assert case.found.states["b"] is case.originals["b"]
    assert case.unchanged("ac")
    assert case.found.retained == {"a", "c"}


def test_a_model_may_come_back_with_fewer_shared_layers() -> None:
    case = Case("abc", met=lambda trial: trial.learners != {"b"} or "layers" in trial.group)
    (given_back,) = (job.trial for job in case.jobs if "layers" in job.trial.group)
    assert given_back.group == "b without 1 of 4 layers"
    assert len(case.found.sharing.of("b").slots) == 0
    assert len([use for use in case.found.sharing.uses if use.model == "b"]) == LAYERS - 1
    assert case.unchanged("ac")


def test_training_starts_from_the_better_of_old_and_new_statistics() -> None:
    starts = []

    def met(trial: Trial) -> bool:
        starts.append(trial.start) if trial.recipe else None
        return trial.learners != {"b"}

    Case("abc", met=met)
    assert starts[0] == Start("refit")


def test_the_model_that_stays_alone_keeps_its_weights_and_lends_them() -> None:
    case = Case("ab", met=falls("b"))
    assert case.found.sharing == SharingMap()
    assert case.found.models == {"a"}
    assert case.unchanged("a")
    case = Case("ab", met=lambda trial: trial.learners != {"b"} or bool(trial.recipe))
    assert case.found.sharing == case.start.sharing
    assert case.unchanged("a")


def test_models_whose_partners_left_too_are_merged_with_each_other() -> None:
    case = Case("ab", met=lambda trial: not trial.again)
    assert case.titles[2:] == ["original weights of a, b", "b from a"]
    last = case.jobs[-1]
    assert last.trial.base == "committed" and last.states["a"] is case.originals["a"]
    assert case.found.sharing == case.start.sharing
    # The donor stays exactly as it was before all merging.
    assert case.found.states["a"] is case.originals["a"]


def test_a_model_whose_partners_left_takes_what_others_lend() -> None:
    case = Case("ab", "cd", met=lambda trial: not (trial.again and trial.learners & set("ab")))
    assert case.titles[4:] == ["original weights of a, b", "a from c, d", "b from a, c, d"]
    assert case.found.sharing.models == set("abcd")
    assert case.unchanged("cd")


def test_without_retraining_only_differences_are_tried() -> None:
    case = Case("abc", met=falls("b"), retrain=False)
    assert case.titles[3:] == ["original weights of b"]
    assert case.found.samples == 0


def family(*names: str) -> FormCosts:
    """Return a family of fine-tunes whose differences all have the same errors."""
    errors = {0: 0.5, 1: 0.4, 2: 0.3, 4: 0.2, 8: 0.1}
    return FormCosts(
        (
            {
                name: [
                    LayerCost(Use(name, f"{place}.weight"), (10, 100), f"base{place}", errors, 8)
                    for place in range(LAYERS)
                ]
                for name in names
            },
        )
    )


def differences(names: str, bits: int) -> FormMap:
    """Return forms in which all weights are differences of some bits."""
    return FormMap().joined(
        {Use(name, f"{place}.weight"): Form(bits, f"base{place}", 8) for name in names for place in range(LAYERS)}
    )


def test_differences_of_more_bits_come_first_and_need_no_training() -> None:
    def met(trial: Trial) -> bool:
        bits = {form.bits for _, form in trial.forms.forms}
        return trial.learners != {"b"} or (bool(bits) and min(bits) >= 4)

    case = Case("abc", met=met, costs=family(*"abc"), forms=differences("abc", 1))
    assert case.found.samples == 0
    assert case.found.forms == differences("ac", 1).joined(differences("b", 4))
    assert case.unchanged("ac")
    assert all(job.trial.learners == {"b"} for job in case.jobs[3:])
