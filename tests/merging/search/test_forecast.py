"""Tests of the forecast of a search: what is left of it, and how long it takes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

import pytest
import torch
from quiet_journal import Quiet

from gemel.merging.forms.costs import LayerCost
from gemel.merging.layers.layers import Layer
from gemel.merging.layers.problem import Problem
from gemel.merging.layers.sharing import Use
from gemel.merging.search.forecast import Forecast, forecast
from gemel.merging.search.search import Job, search
from gemel.merging.strategies import STRATEGIES, Search, SearchSettings, Verdict, strategy
from gemel.merging.strategies.cheapest_forms import FormCosts, with_forms
from gemel.merging.training.trial import Outcome


def problem(**models: str) -> Problem:
    """Return a problem of models, each given as a string of layers, with a letter for each definition."""
    return Problem(
        {
            name: tuple(
                Layer(name, str(index), letter, (ord(letter),), 10 * (ord(letter) - 96), False)
                for index, letter in enumerate(text)
            )
            for name, text in models.items()
        }
    )


def starter(made: Problem, name: str = "together", **settings: object) -> Callable[[], Search]:
    """Return a function that starts a strategy anew."""
    return lambda: strategy(name)(made, SearchSettings(**settings))  # type: ignore[arg-type]


def run(made: Problem, start: Callable[[], Search], met: Callable[[Job], bool], seconds: float = 2.0) -> list[Verdict]:
    """Run a search with made-up outcomes, and return its verdicts."""
    originals = {model: {layer.parameter: torch.zeros(1) for layer in made.layers[model]} for model in made.models}

    def execute(jobs: Sequence[Job]) -> Generator[Outcome, None, None]:
        for job in jobs:
            learners = job.trial.learners
            good = learners if met(job) else frozenset[str]()
            scores = dict.fromkeys(learners, 1.0 if good else 0.5)
            states = {model: originals[model] for model in learners}
            ended = "start" if job.trial.recipe is None else "met" if good else "done"
            yield Outcome(scores, scores, good, 1, seconds, ended, {}, states)

    return search(made, start(), originals, execute, Quiet()).verdicts


def trains(job: Job) -> bool:
    """Say that a training reaches all targets, and that a look does not."""
    return job.trial.recipe is not None


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize(
    "models", [{"x": "abab", "y": "ab"}, {"v": "aab", "w": "aab", "x": "cde", "y": "cde", "z": "a"}]
)
def test_a_search_in_which_every_training_succeeds_is_forecast_exactly(name: str, models: dict[str, str]) -> None:
    made = problem(**models)
    start = starter(made, name)
    verdicts = run(made, start, trains)
    looks = sum(verdict.trial.recipe is None for verdict in verdicts)
    assert (forecast(start, made, []).looks, forecast(start, made, []).trainings) == (looks, len(verdicts) - looks)
    for done in range(len(verdicts) + 1):
        left = [verdict.trial.recipe is None for verdict in verdicts[done:]]
        found = forecast(start, made, verdicts[:done])
        assert (found.looks, found.trainings) == (sum(left), len(left) - sum(left))


def test_a_look_that_is_accepted_leaves_nothing_of_its_batch() -> None:
    made = problem(x="abab", y="abab", z="abab")
    start = starter(made, folds=0)
    assert forecast(start, made, []) == Forecast(4, 1, None)
    verdicts = run(made, start, lambda job: job.trial.start.order[0] == "y")
    # The first donor is not good enough, the second one is.
    assert len(verdicts) == 2
    assert forecast(start, made, verdicts) == Forecast(0, 0, 0.0)


def test_seconds_follow_from_what_was_timed() -> None:
    made = problem(x="abab", y="abab", z="abab")
    start = starter(made, folds=0, steps=100)
    verdicts = run(made, start, lambda job: False, seconds=6.0)
    # Three looks of 6 s are left after the first, and a training of 100 steps whose pace is not known yet.
    first = forecast(start, made, verdicts[:1])
    assert (first.looks, first.trainings) == (3, 1)
    assert first.seconds == pytest.approx(3 * 6 + 100 * 6 * 0.14)
    # A training that ran through took 6 s for 100 steps of three models, so the next round of 200 steps takes 12 s.
    trained = next(index for index, verdict in enumerate(verdicts, 1) if verdict.trial.recipe is not None)
    after = forecast(start, made, verdicts[:trained])
    assert after.trainings >= 1
    assert after.seconds is not None


def test_epochs_are_not_forecast_before_one_was_timed() -> None:
    made = problem(x="ab", y="ab")
    start = starter(made, "heaviest", epochs=4)
    assert forecast(start, made, []) == Forecast(0, 2, None)
    verdicts = run(made, start, lambda job: False, seconds=8.0)
    assert forecast(start, made, verdicts[:1]).seconds == pytest.approx(8.0)


@pytest.mark.parametrize("retrain", [True, False])
def test_codes_that_need_the_most_bits_are_forecast_exactly(retrain: bool) -> None:
    shape, models, places = (16, 16, 3, 3), "abc", range(4)
    made = Problem(
        {name: tuple(Layer(name, str(place), "conv", shape, 9216, False) for place in places) for name in models}
    )
    errors = {0: 0.5, 1: 0.3, 2: 0.2, 4: 0.05, 8: 0.005}

    def costs(name: str, base: bool) -> list[LayerCost]:
        return [LayerCost(Use(name, f"{i}.weight"), shape, str(i) if base else None, errors) for i in places]

    found = FormCosts(({name: costs(name, True) for name in models},), {name: costs(name, False) for name in models})
    settings = SearchSettings(retrain=retrain, compress=True)

    def start() -> Search:
        return with_forms(strategy("together"), made, settings, found)

    def needs_8_bits(job: Job) -> bool:
        bits = [form.bits for _, form in job.trial.forms.forms]
        return trains(job) or (bool(bits) and (max(bits) == 8 or not job.trial.measure))

    verdicts = run(made, start, needs_8_bits)
    for done in range(len(verdicts) + 1):
        left = [each.trial.recipe is None for each in verdicts[done:] if each.outcome.ended != "saves less"]
        ahead = forecast(start, made, verdicts[:done])
        assert (ahead.looks, ahead.trainings) == (sum(left), len(left) - sum(left))
    assert any(each.trial.recipe for each in verdicts) == retrain
