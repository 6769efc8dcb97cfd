"""Tests of search strategies: the trials that they ask for, given the verdicts on earlier trials."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from string import ascii_letters
from typing import Any

import pytest
import torch
from quiet_journal import Quiet

from gemel.errors import InputError
from gemel.merging.forms.form_map import NO_FORMS, Form, FormMap
from gemel.merging.layers.layers import Layer
from gemel.merging.layers.problem import Problem
from gemel.merging.layers.sharing import SharingMap, Use
from gemel.merging.search.search import Found, Job, search
from gemel.merging.strategies import STRATEGIES, SearchSettings, strategy
from gemel.merging.training.trial import Outcome, Start, Trial

Met = Callable[[Trial], str]


def problem(seed: int = 0, /, **models: str) -> Problem:
    """Return a problem of models, each given as a string of layers, with a letter for each definition.

    A layer ``a`` has 10 bytes, ``b`` 20, ``c`` 30 and so on.
    """
    return Problem(
        {
            name: tuple(
                Layer(name, str(index), letter, (ord(letter),), 10 * (ord(letter) - ord("a") + 1), False)
                for index, letter in enumerate(text)
            )
            for name, text in models.items()
        },
        seed,
    )


def drive(
    made: Problem,
    name: str,
    met: Met,
    strain: Mapping[Use, float] | None = None,
    accuracies: Callable[[Trial], float | Mapping[str, float]] = lambda trial: 0.5,
    ended: Callable[[Trial], str] = lambda trial: "",
    forms: FormMap = NO_FORMS,
    **settings: Any,
) -> tuple[list[list[Trial]], Found]:
    """Run a strategy with trials whose outcomes are made up.

    Args:
        made: the problem.
        name: name of the strategy.
        met: trial -> names of the models that meet their targets.
        strain: strain of each weight, for models that miss their targets.
        accuracies: trial -> accuracy of the models that miss their targets, one for all or by name.
        ended: trial -> why its training ended; empty for ``met`` or ``done``, as ``met`` has it.
        forms: forms that are committed before the strategy begins.
        settings: settings of the search.

    Returns:
        The batches of trials, and the state of the search at its end.
    """
    batches: list[list[Trial]] = []
    originals = {model: {layer.parameter: torch.zeros(1) for layer in made.layers[model]} for model in made.models}

    def execute(jobs: Sequence[Job]) -> Generator[Outcome, None, None]:
        batches.append([job.trial for job in jobs])
        yield from (outcome(job.trial) for job in jobs)

    def outcome(trial: Trial) -> Outcome:
        good = frozenset(met(trial)) & trial.learners
        reach = accuracies(trial)
        reach = reach if isinstance(reach, Mapping) else dict.fromkeys(trial.learners, reach)
        scores = {model: 1.0 if model in good else reach[model] for model in trial.learners}
        pull = {use: value for use, value in (strain or {}).items() if use in trial.sharing.uses}
        pull = {use: value for use, value in pull.items() if use.model in trial.learners - good}
        states = {model: originals[model] for model in trial.learners}
        end = ended(trial) or ("met" if good == trial.learners else "done")
        return Outcome(scores, scores, good, 1, 0.0, end, pull, states)

    begin = Found(dict(originals), forms=forms)
    steps = strategy(name)(made, SearchSettings(**settings))
    return batches, search(made, steps, originals, execute, Quiet(), start=begin)


def one_each(batches: list[list[Trial]]) -> list[Trial]:
    """Return the trials of batches that must have one trial each."""
    assert all(len(batch) == 1 for batch in batches)
    return [batch[0] for batch in batches]


def added(trials: Sequence[Trial], accepted: Sequence[bool]) -> list[str]:
    """Return the slots that each trial adds to the last accepted one, as ``1(xy)``: layer number and models."""
    known, found = SharingMap(), []
    for trial, taken in zip(trials, accepted, strict=True):
        new = [slot for slot in trial.sharing.slots if slot not in known.slots]
        found.append(" ".join(sorted(f"{slot[0].parameter[0]}({''.join(use.model for use in slot)})" for slot in new)))
        known = trial.sharing if taken else known
    return found


def everyone(trial: Trial) -> str:
    """Say that all models in training meet their targets."""
    return "".join(trial.learners)


def nobody(trial: Trial) -> str:
    """Say that no model meets its target."""
    return ""


# Layer 0 of each model is an a, layer 1 a b and so on, so that the layer number of a slot tells its definition.
FLAT = {"x": "abcd", "y": "abcd", "z": "abcd"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("heaviest", ["3(xyz)", "2(xyz)", "1(xyz)", "0(xyz)"]),
        ("earliest", ["0(xyz)", "1(xyz)", "2(xyz)", "3(xyz)"]),
        ("latest", ["3(xyz)", "2(xyz)", "1(xyz)", "0(xyz)"]),
        ("two-group", ["2(xyz) 3(xyz)", "0(xyz) 1(xyz)"]),
        ("one-model", ["0(xy) 1(xy) 2(xy) 3(xy)", "0(xyz) 1(xyz) 2(xyz) 3(xyz)"]),
    ],
)
def test_order(name: str, expected: list[str]) -> None:
    batches, found = drive(problem(**FLAT), name, everyone)
    trials = one_each(batches)
    assert added(trials, [True] * len(trials)) == expected
    assert all(trial.learners == frozenset("xyz") for trial in trials[-1:])
    assert len(found.sharing.slots) == 4


def test_earliest_and_latest_go_by_place_and_not_by_weight() -> None:
    made = problem(x="bcad", y="bcad")
    for name, expected in (("earliest", "0123"), ("latest", "3210"), ("heaviest", "3102")):
        trials = one_each(drive(made, name, everyone)[0])
        assert "".join(each[0] for each in added(trials, [True] * 4)) == expected


def test_random_is_each_group_once_and_the_seed_repeats_it() -> None:
    layers = "abcdefgh"
    orders = [
        tuple(added(trials, [True] * len(trials)))
        for seed in (0, 0, 1)
        for trials in [one_each(drive(problem(seed, x=layers, y=layers), "random", everyone)[0])]
    ]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2]) == [f"{index}(xy)" for index in range(8)]


def test_half_of_a_group_is_tried_when_it_fails() -> None:
    trials = one_each(drive(problem(x="dddd", y="dddd"), "heaviest", nobody)[0])
    # Half of the layers is tried, then half of these. A single pair is not halved.
    assert added(trials, [False] * 3) == ["0(xy) 1(xy) 2(xy) 3(xy)", "0(xy) 1(xy)", "0(xy)"]


def test_half_of_the_models_is_tried_when_there_is_one_layer() -> None:
    batches, _ = drive(problem(w="d", x="d", y="d", z="d"), "heaviest", nobody)
    assert added(one_each(batches), [False] * 2) == ["0(wxyz)", "0(wx)"]
    batches, _ = drive(problem(x="d", y="d", z="d"), "heaviest", nobody)
    assert added(one_each(batches), [False] * 2) == ["0(xyz)", "0(xy)"]


def test_a_group_is_given_up_when_half_of_it_saves_less_than_the_next() -> None:
    # Two layers of d save 80; one of them saves 40, less than the 60 of c, which is next.
    batches, _ = drive(problem(x="ddcc", y="ddcc"), "heaviest", nobody)
    assert added(one_each(batches), [False] * 3) == ["0(xy) 1(xy)", "2(xy) 3(xy)", "2(xy)"]
    # Half of four layers of d saves 80, more than the 20 of b: it is tried.
    batches, _ = drive(problem(x="ddddb", y="ddddb"), "heaviest", nobody)
    assert added(one_each(batches), [False] * 4) == ["0(xy) 1(xy) 2(xy) 3(xy)", "0(xy) 1(xy)", "0(xy)", "4(xy)"]


def test_of_two_groups_the_first_alone_is_tried_when_both_fail() -> None:
    batches, _ = drive(problem(x="dc", y="dc"), "two-group", nobody)
    assert added(one_each(batches), [False] * 2) == ["0(xy) 1(xy)", "0(xy)"]


def test_of_models_that_share_nothing_without_the_last_no_half_is_tried() -> None:
    # x is the largest model and shares nothing with y and z. Half of the models is x and y, which has no slot.
    batches, _ = drive(problem(x="dd", y="a", z="a"), "one-model", nobody)
    assert added(one_each(batches), [False]) == ["0(yz)"]


def test_a_partial_success_goes_on_with_what_it_left() -> None:
    batches, found = drive(problem(**FLAT), "heaviest", lambda trial: "xy")
    assert found.sharing == SharingMap().joined([Use("x", f"{i}.weight"), Use("y", f"{i}.weight")] for i in range(4))
    assert one_each(batches)[1].sharing.slots[-1] == (Use("x", "3.weight"), Use("y", "3.weight"))


def test_models_that_are_tied_already_learn_with_the_others() -> None:
    # w and x share b already when x and y try a, so w trains with them.
    batches, _ = drive(problem(w="b", x="ab", y="a"), "heaviest", everyone)
    assert [sorted(trial.learners) for trial in one_each(batches)] == [["w", "x"], ["w", "x", "y"]]


def test_the_published_recipe() -> None:
    (trial,) = one_each(drive(problem(x="a", y="a"), "heaviest", everyone, epochs=7, batch=32)[0])
    assert trial.recipe is not None
    assert (trial.recipe.steps, trial.recipe.unit, trial.recipe.rate) == (7, "epochs", 1e-5)
    assert (trial.recipe.supervision, trial.recipe.schedule, trial.recipe.batch) == ("labels", "constant", 32)
    assert (trial.start.kind, trial.start.order, trial.base) == ("first", ("x", "y"), "committed")


@pytest.mark.parametrize(("given", "kind"), [(None, "first"), ("donor", "donor"), ("average", "average")])
def test_the_published_heuristic_with_other_starts(given: Any, kind: str) -> None:
    (trial,) = one_each(drive(problem(x="a", y="a"), "heaviest", everyone, start=given)[0])
    assert trial.start.kind == kind


@pytest.mark.parametrize("name", STRATEGIES)
def test_nothing_to_share_is_no_trial(name: str) -> None:
    assert drive(problem(x="ab", y="cd"), name, everyone) == ([], Found({**_zeros(x="ab", y="cd")}))
    assert drive(problem(x="aa"), name, everyone)[0] == []
    assert drive(Problem({}), name, everyone)[0] == []


def _zeros(**models: str) -> dict[str, Any]:
    """Return original weights for the models of a problem, all zero."""
    made = problem(**models)
    return {model: {layer.parameter: torch.zeros(1) for layer in made.layers[model]} for model in made.models}


def test_strategies_that_do_not_exist() -> None:
    with pytest.raises(InputError, match="--strategy: 'best' is not allowed: one of together, heaviest"):
        strategy("best")


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("outcomes", ["everyone", "nobody", "x", "xy"])
def test_every_search_ends_with_what_its_models_met(name: str, outcomes: str) -> None:
    made = problem(w="aabbcc", x="abc", y="aabbdd", z="ddd")
    met: Met = {"everyone": everyone, "nobody": nobody}.get(outcomes, lambda trial: outcomes)
    batches, found = drive(made, name, met)
    assert batches
    # A model that shares has met its targets, or it is the one that lends its weights and did not change.
    good = set(made.models) if outcomes == "everyone" else set(outcomes)
    assert all(len({use.model for use in slot} - good) <= (name == "together") for slot in found.sharing.slots)
    if outcomes == "everyone":
        assert made.saved(found.sharing) >= sum(group.saving for group in made.groups())


# The default strategy.

DEEP = {"x": "abab", "y": "ababab", "z": "ab"}


def looks(trial: Trial) -> bool:
    """Check whether a trial only evaluates its starting weights."""
    return trial.recipe is None


def test_together_tries_every_donor_and_takes_the_best() -> None:
    def accuracies(trial: Trial) -> float:
        return 0.9 if trial.start.order[:1] == ("z",) else 0.5

    batches, found = drive(
        problem(**DEEP), "together", lambda trial: "" if looks(trial) else "xyz", accuracies=accuracies
    )
    kinds = [(trial.start.kind, trial.start.order[0]) for trial in batches[0]]
    assert sorted(kinds) == [("average", "y"), ("donor", "x"), ("donor", "y"), ("donor", "z")]
    assert all(looks(trial) and sorted(trial.start.order) == ["x", "y", "z"] for trial in batches[0])
    assert len({trial.sharing for batch in batches for trial in batch}) == 1
    (trial,) = batches[1]
    assert (trial.start.kind, trial.start.order[0], trial.base) == ("donor", "z", "committed")
    assert trial.learners == frozenset("xyz")
    assert len(batches) == 2
    # Layers inside models share too, so two tensors are left.
    assert len(found.sharing.slots) == 2


@pytest.mark.parametrize(("deep", "donor"), [("ab", "deep"), ("abab", "deep"), ("abababab", "small")])
def test_together_heeds_least_what_is_deepest(deep: str, donor: str) -> None:
    def accuracies(trial: Trial) -> Mapping[str, float]:
        small = trial.start.order[:1] == ("small",)
        return {"small": 0.99 if small else 0.8, "deep": 0.3 if small else 0.99}

    batches, _ = drive(problem(small="ab", deep=deep), "together", nobody, accuracies=accuracies)
    assert batches[1][0].start.order[0] == donor


def test_together_without_sharing_inside_models() -> None:
    _, found = drive(problem(**DEEP), "together", everyone, inside=False)
    assert sorted(len(slot) for slot in found.sharing.slots) == [2, 2, 3, 3]
    assert all(len({use.model for use in slot}) == len(slot) for slot in found.sharing.slots)


def test_together_does_not_train_where_a_donor_is_good_enough() -> None:
    batches, found = drive(problem(**DEEP), "together", everyone)
    assert len(batches) == 1
    assert found.sharing.models == set("xyz")


@pytest.mark.parametrize("start", ["first", "average"])
def test_together_with_a_start_that_is_given_looks_at_no_donor(start: str) -> None:
    batches, _ = drive(problem(**DEEP), "together", everyone, start=start)
    (trial,) = one_each(batches)
    assert trial.recipe is not None
    assert trial.start.kind == start


def test_together_goes_on_for_longer_while_some_miss() -> None:
    scores = {"2": 0.6, "3": 0.9}
    batches, _ = drive(
        problem(**DEEP),
        "together",
        nobody,
        start="first",
        steps=10,
        accuracies=lambda trial: scores.get(trial.group[-1], 0.1),
    )
    rounds = [trial for trial in one_each(batches) if trial.learners == frozenset("xyz")]
    steps = [trial.recipe.steps for trial in rounds if trial.recipe]
    assert steps[:3] == [10, 20, 40]
    assert [trial.base for trial in rounds[:3]] == ["committed", "last", "last"]
    assert [trial.start.kind for trial in rounds[:3]] == ["first", "keep", "keep"]
    assert len({trial.sharing for trial in rounds[:3]}) == 1


def test_together_does_not_go_on_where_another_round_promises_too_little() -> None:
    # The second round gains 0.3, less than the 0.4 that are missing.
    batches, _ = drive(
        problem(**DEEP),
        "together",
        nobody,
        start="first",
        accuracies=lambda trial: 0.6 if trial.group.endswith("round 2") else 0.3,
    )
    # The third trial begins anew, with fewer slots.
    assert [trial.base for trial in one_each(batches)][:3] == ["committed", "last", "committed"]


def test_what_the_start_lacks_and_a_first_round_hardly_brings_back_is_not_gone_on_with() -> None:
    def accuracies(trial: Trial) -> float:
        return 0.5 if looks(trial) else 0.6

    batches, _ = drive(problem(x="aa", y="aa"), "together", nobody, accuracies=accuracies)
    assert all(trial.base == "committed" for batch in batches for trial in batch)


def test_a_model_without_hope_does_not_keep_the_others_from_another_round() -> None:
    made = problem(x="aa", y="aa", z="aa")

    def accuracies(trial: Trial) -> Mapping[str, float]:
        return {"x": 0.8, "y": 0.8, "z": 0.1} if trial.base == "committed" else {"x": 0.9, "y": 0.9, "z": 0.1}

    def met(trial: Trial) -> str:
        return "xy" if trial.group.endswith("round 3") else ""

    batches, found = drive(made, "together", met, accuracies=accuracies, start="first", inside=False)
    trials = one_each(batches)
    assert [set(trial.learners) for trial in trials[:3]] == [set("xyz"), set("xyz"), set("xy")]
    assert trials[2].sharing.models == set("xy")
    assert found.sharing.models == set("xy")
    # Afterwards z alone is retrained with private layers.
    assert all(trial.learners == {"z"} for trial in trials[3:])


def test_models_that_share_already_are_left_out_together() -> None:
    made = problem(x="ab", y="ab", z="ab")

    def accuracies(trial: Trial) -> Mapping[str, float]:
        late = trial.base == "last"
        return {"x": 0.9 if late else 0.5, "y": 0.5, "z": 0.9 if late else 0.5}

    def met(trial: Trial) -> str:
        # All models meet their targets with the heaviest layer shared; with both layers, y does not.
        return "xyz" if len(trial.sharing.slots) == 1 and trial.sharing.slots[0][0].parameter.startswith("1") else ""

    batches, found = drive(made, "together", met, accuracies=accuracies, start="first", inside=False)
    assert found.sharing.models == set("xyz")
    trials = one_each(batches)
    assert any(trial.learners == set("xz") for trial in trials), "nothing was shared then"
    heaviest = next(index for index, trial in enumerate(trials) if met(trial))
    assert not any(trial.learners == set("xz") for trial in trials[heaviest:])


def test_a_donor_that_has_come_down_has_another_round() -> None:
    def accuracies(trial: Trial) -> Mapping[str, float]:
        start = dict.fromkeys("xy", 0.3) | {trial.start.order[0]: 1.0} if looks(trial) else {}
        return start or dict.fromkeys("xy", 0.9)

    _, found = drive(
        problem(x="aa", y="aa"),
        "together",
        lambda trial: "xy" if trial.group.endswith("round 2") else "",
        accuracies=accuracies,
    )
    assert found.sharing.models == set("xy")


def test_together_goes_on_until_queries_have_something_to_spare() -> None:
    ends = iter(["done", "met"])
    batches, found = drive(problem(**DEEP), "together", everyone, start="first", ended=lambda trial: next(ends))
    assert [trial.base for trial in one_each(batches)] == ["committed", "last"]
    assert found.sharing.models == set("xyz")


def at_least(slots: int) -> Met:
    """Say that all models meet their targets if a trial has at least so many slots, and none otherwise."""
    return lambda trial: "xyz" if len(trial.sharing.slots) >= slots else ""


def test_models_that_bear_everything_are_left_with_half_as_many_blocks() -> None:
    made = problem(x="a" * 8, y="a" * 6)
    batches, found = drive(made, "together", everyone, start="first")
    trials = one_each(batches)
    # The first fold saves half, the second the rest.
    assert [len(trial.sharing.slots) for trial in trials] == [6, 5, 4]
    # Folding starts from the committed weights.
    assert [trial.start.kind for trial in trials] == ["first", "donor", "donor"]
    assert all(trial.base == "committed" for trial in trials)
    assert len(found.sharing.slots) == 4
    # Blocks are halved ``folds`` times, while there are two blocks.
    for folds, left in ((0, 6), (2, 2), (5, 2)):
        assert len(drive(made, "together", everyone, start="first", folds=folds)[1].sharing.slots) == left
    # Folding ends at the first failure, and does not begin if some model misses its target before.
    for least, tried, left in ((4, 3, 4), (5, 3, 5), (6, 2, 6)):
        batches, found = drive(made, "together", at_least(least), start="first")
        assert (len(batches), len(found.sharing.slots)) == (tried, left)
    batches, found = drive(made, "together", nobody, start="first")
    assert not any("halved" in trial.group for trial in one_each(batches))


def strained(made: Problem) -> dict[Use, float]:
    """Return a strain for every weight of a problem that grows with the layer's depth."""
    return {
        Use(model, layer.parameter): float(index + 1)
        for model in made.models
        for index, layer in enumerate(made.layers[model])
    }


def own_layers(trial: Trial, model: str, count: int) -> range:
    """Return the indices of the layers that a trial leaves private to a model; they must be its last ones."""
    own = sorted(set(range(count)) - {int(use.parameter[:-7]) for use in trial.sharing.uses if use.model == model})
    assert own == list(range(count - len(own), count))
    return range(count - len(own), count)


def test_a_query_that_misses_gets_back_what_it_pulls_at_hardest() -> None:
    made = problem(x="a" * 16, y="a" * 16, z="a" * 16)

    def met(trial: Trial) -> str:
        return "xy" if trial.learners == frozenset("xyz") else ""

    batches, found = drive(made, "together", met, strained(made), start="first", inside=False)
    alone = [trial for trial in one_each(batches) if trial.learners == frozenset("z")]
    # Two, four and eight of sixteen layers become private: the last ones, which have the highest strain.
    assert [own_layers(trial, "z", 16) for trial in alone] == [range(14, 16), range(12, 16), range(8, 16)]
    # The first attempt starts from the weights that the others share, the next ones from the attempt before.
    assert [trial.base for trial in alone] == ["committed", "last", "last"]
    assert [(trial.start.kind, trial.start.order) for trial in alone[:2]] == [("donor", ("x", "y", "z")), ("keep", ())]
    assert found.sharing.models == {"x", "y"}
    assert len(found.sharing.slots) == 16


def test_a_query_that_has_got_enough_back_shares_the_rest() -> None:
    made = problem(x="a" * 16, y="a" * 16, z="a" * 16)

    def met(trial: Trial) -> str:
        kept = sum(use.model == "z" for use in trial.sharing.uses)
        return "xyz" if kept <= 12 else "xy"

    _, found = drive(made, "together", met, strained(made), start="first", inside=False)
    assert sum(use.model == "z" for use in found.sharing.uses) == 12
    assert sum(use.model == "x" for use in found.sharing.uses) == 16


def test_every_query_that_misses_gets_something_back() -> None:
    made = problem(w="a" * 16, x="a" * 16, y="a" * 16, z="a" * 16)

    def met(trial: Trial) -> str:
        alone = len(trial.learners) == 1
        return "wx" + "".join(m for m in "yz" if alone and len(own_layers(trial, m, 16)) >= {"y": 2, "z": 4}[m])

    _, found = drive(made, "together", met, strained(made), start="first", inside=False)
    assert {m: sum(use.model == m for use in found.sharing.uses) for m in "wxyz"} == {
        "w": 16,
        "x": 16,
        "y": 14,
        "z": 12,
    }


def test_what_an_earlier_round_committed_is_what_the_others_join() -> None:
    made = problem(x="a" * 16, y="a" * 16, z="a" * 16)
    rounds = iter(["xy", "x", ""])

    def met(trial: Trial) -> str:
        return next(rounds) if trial.learners == frozenset("xyz") else "z" * (len(own_layers(trial, "z", 16)) >= 2)

    batches, found = drive(made, "together", met, strained(made), start="first", inside=False)
    alone = [trial for trial in one_each(batches) if trial.learners == frozenset("z")]
    assert [trial.base for trial in alone] == ["committed"]
    assert {m: sum(use.model == m for use in found.sharing.uses) for m in "xyz"} == {"x": 16, "y": 16, "z": 14}


def test_models_whose_forms_save_more_than_their_sharing_are_joined_by_others() -> None:
    made = problem(w="a" * 16, x="a" * 16, y="a" * 16, z="a" * 16)
    # Three models are one base: 320 of 640 bytes, where two that share save 160, and three of which one got back 300.
    forms = FormMap().joined(
        {Use(m, layer.parameter): Form(0, layer.parameter) for m in "wxy" for layer in made.layers[m]}
    )

    def met(trial: Trial) -> str:
        return "xy" if len(trial.learners) == 4 else "".join(m for m in trial.learners if own_layers(trial, m, 16))

    batches, found = drive(made, "together", met, strained(made), start="first", inside=False, forms=forms)
    alone = [trial for trial in one_each(batches) if len(trial.learners) == 1]
    # Each goes on from the last weights, which are the only ones in which x and y share.
    assert [(trial.learners, trial.base, trial.start.kind) for trial in alone] == [
        (frozenset("w"), "last", "keep"),
        (frozenset("z"), "last", "keep"),
    ]
    assert [verdict.accepted for verdict in found.verdicts[-3:]] == [False, False, True]
    assert {m: sum(use.model == m for use in found.sharing.uses) for m in "wxyz"} == {
        "w": 14,
        "x": 16,
        "y": 16,
        "z": 14,
    }
    # What shares has the weights of its training, and so none of its earlier forms.
    assert found.forms == NO_FORMS


def test_small_models_are_not_tried_twice_in_one_way() -> None:
    made = problem(x="aa", y="aa", z="aa")

    def met(trial: Trial) -> str:
        return "xy" if trial.learners == frozenset("xyz") else ""

    batches, _ = drive(made, "together", met, strained(made), start="first", inside=False)
    # An eighth, a quarter and half of two layers are one layer each, which is tried once.
    assert len([trial for trial in one_each(batches) if trial.learners == frozenset("z")]) == 1


def test_what_hardly_anybody_bears_is_halved_and_begun_anew() -> None:
    # Layers of 20, 20 and 30 bytes besides one of 10: the heaviest are tried first.
    made = problem(x="abbc", y="abbc")

    def met(trial: Trial) -> str:
        return "xy" if len(trial.sharing.slots) == 1 else "x"

    batches, found = drive(made, "together", met, strained(made), start="first", inside=False)
    trials = one_each(batches)
    assert all(trial.learners == frozenset("xy") for trial in trials)
    # Of 80 bytes: all; the layers of 30 and 20; that of 30, which is kept; both again; the other two with the kept one;
    # and each of these two with the kept one.
    assert [len(trial.sharing.slots) for trial in trials if trial.base == "committed"] == [4, 2, 1, 2, 3, 2, 2]
    assert {trial.start.kind for trial in trials if trial.base == "committed"} == {"first"}
    assert found.sharing.slots == ((Use("x", "3.weight"), Use("y", "3.weight")),)


def test_what_is_left_of_a_half_is_tried_on_top_of_the_other() -> None:
    made = problem(x="abbc", y="abbc")

    def met(trial: Trial) -> str:
        return "xy" if len(trial.sharing.slots) == 2 else ""

    batches, found = drive(made, "together", met, strained(made), start="first", inside=False)
    slots = [len(trial.sharing.slots) for trial in one_each(batches) if trial.base == "committed"]
    # All layers; the heavier half, which is kept; all again; and each layer of the lighter half with the kept ones.
    assert slots == [4, 2, 4, 3, 3]
    assert len(found.sharing.slots) == 2


def test_where_sharing_all_leaves_nobody_with_anything_that_is_not_trained() -> None:
    made = problem(x="abbc", y="abbc")

    def accuracies(trial: Trial) -> Mapping[str, float]:
        donor = trial.start.order[0]
        return {**dict.fromkeys("xy", 0.05), donor: 1.0}

    def met(trial: Trial) -> str:
        return "" if looks(trial) or len(trial.learners) == 1 else "xy"

    batches, found = drive(made, "together", met, accuracies=accuracies)
    trained = [len(trial.sharing.slots) for batch in batches for trial in batch if len(trial.learners) > 1]
    trained = trained[3:]  # without the looks at all layers
    # Halves are trained whatever their starting weights keep.
    assert trained == [2, 2, 2, 2, 4, 4, 4, 4]
    assert len(found.sharing.slots) == 4


def test_a_model_that_shares_with_itself_alone_is_none_to_join() -> None:
    made = problem(x="aaaa", y="aa", z="aa")

    def met(trial: Trial) -> str:
        return "x" if sum(use.model == "y" for use in trial.sharing.uses) > 1 else "xyz"

    batches, found = drive(made, "together", met, strained(made), start="first")
    trials = one_each(batches)
    assert all(trial.learners == frozenset("xyz") for trial in trials)
    # The layers that x shares with itself stay shared in the next trials.
    assert all(len({use.parameter for use in slot if use.model == "x"}) > 1 for slot in trials[-1].sharing.slots)
    assert found.sharing.models == set("xyz")


def test_where_nothing_helps_nothing_is_shared() -> None:
    made = problem(x="a" * 8, y="a" * 8)
    _, found = drive(made, "together", nobody, strained(made), inside=False)
    assert found.sharing == SharingMap()


def test_models_that_have_nothing_in_common_are_merged_apart() -> None:
    made = problem(w="a", x="a", y="b", z="b")
    batches, found = drive(made, "together", lambda trial: "" if looks(trial) or "w" in trial.learners else "yz")
    assert {trial.learners for batch in batches for trial in batch} >= {frozenset("wx"), frozenset("yz")}
    assert not any(trial.learners & set("wx") and trial.learners & set("yz") for batch in batches for trial in batch)
    assert found.sharing.models == {"y", "z"}


# Families, groups of their own, and looks.

# v and w are one family, x and y another; they have the layer c in common.
TWO = {"v": "cdd", "w": "cdd", "x": "cee", "y": "cee"}


def apart(trial: Trial) -> str:
    """Say that models meet their targets if they share with their own family only."""
    mixed = any(
        {use.model for use in slot} & set("vw") and {use.model for use in slot} & set("xy") for slot in slots(trial)
    )
    return "" if mixed or looks(trial) else "vwxy"


def slots(trial: Trial) -> Sequence[Sequence[Use]]:
    """Return the slots of a trial."""
    return trial.sharing.slots


def test_families_are_merged_among_themselves_first() -> None:
    made = problem(**TWO)
    batches, found = drive(made, "together", apart, inside=False)
    first = [trial.learners for batch in batches for trial in batch if not looks(trial)][:2]
    assert first == [frozenset("xy"), frozenset("vw")]
    # Each family is one model in the end, half of all bytes. Merged all at once, no trial would have met its targets.
    assert made.saved(found.sharing) == made.bytes / 2
    # The layer that both have, 30 of 480 bytes, is tried between them in the end.
    assert batches[-1][0].learners == frozenset("vwxy")


def test_families_share_with_each_other_what_they_have_in_common() -> None:
    made = problem(**TWO)
    _, found = drive(made, "together", lambda trial: "" if looks(trial) else "vwxy", inside=False)
    assert [len(slot) for slot in found.sharing.slots].count(4) == 1
    assert made.saved(found.sharing) == made.bytes / 2 + 30


def test_what_families_have_in_common_is_not_tried_when_it_saves_too_little() -> None:
    made = problem(v="aii", w="aii", x="ajj", y="ajj")
    batches, _ = drive(made, "together", lambda trial: "" if looks(trial) else "vwxy", inside=False)
    assert {trial.learners for batch in batches for trial in batch} == {frozenset("vw"), frozenset("xy")}


def test_models_that_fall_out_of_their_family_form_a_group_of_their_own() -> None:
    # One list of layers, but w and x are trained from one checkpoint and y and z from another.
    made = problem(w="aa", x="aa", y="aa", z="aa")

    def met(trial: Trial) -> str:
        if looks(trial):
            return ""
        return "wx" if trial.learners >= set("wx") else "yz" if trial.learners == set("yz") else ""

    _, found = drive(made, "together", met, strained(made), inside=False)
    # Half of the bytes; if y and z could only join w and x, it would be a quarter.
    assert made.saved(found.sharing) == made.bytes / 2
    assert {frozenset(use.model for use in slot) for slot in found.sharing.slots} == {frozenset("wx"), frozenset("yz")}


def test_models_left_over_from_several_families_form_groups() -> None:
    made = problem(u="ad", v="ad", w="ad", x="ae", y="ae", z="ae")

    def met(trial: Trial) -> str:
        if looks(trial):
            return ""
        if trial.learners in (set("uvw"), set("xyz")):
            return "uvxy"
        return "wz" if trial.learners == set("wz") else ""

    batches, found = drive(made, "together", met, strained(made), inside=False)
    assert frozenset("wz") in {trial.learners for batch in batches for trial in batch}
    assert (Use("w", "0.weight"), Use("z", "0.weight")) in found.sharing.slots


def test_a_model_without_a_family_is_tried_with_the_others_once() -> None:
    made = problem(x="ab", y="ac")
    batches, found = drive(made, "together", nobody, start="first")
    shared = [trial.sharing for trial in one_each(batches) if trial.base == "committed"]
    assert found.sharing == SharingMap()
    assert len(shared) == len(set(shared))


def inside(trial: Trial) -> bool:
    """Check whether a trial shares layers inside a model."""
    return any(len({use.model for use in slot}) < len(slot) for slot in trial.sharing.slots)


def test_sharing_between_models_is_tried_where_sharing_inside_breaks_them() -> None:
    made = problem(x="aaaa", y="aa")

    def accuracies(trial: Trial) -> Mapping[str, float]:
        # Sharing inside breaks even the donor.
        return {"x": 0.079, "y": 1.0} if inside(trial) else {"x": 0.5, "y": 0.5}

    batches, found = drive(
        made, "together", lambda trial: "" if looks(trial) or inside(trial) else "xy", accuracies=accuracies
    )
    assert inside(batches[0][0])
    trained = [trial for batch in batches for trial in batch if not looks(trial)]
    # Nothing is trained with layers shared inside models.
    assert not any(map(inside, trained))
    assert [len(slot) for slot in found.sharing.slots] == [2, 2]


def test_sharing_between_models_is_tried_where_training_with_sharing_inside_fails() -> None:
    made = problem(x="aaaa", y="aa")
    batches, found = drive(made, "together", lambda trial: "" if inside(trial) else "xy", start="first")
    # Two rounds with layers shared inside models, and one without. Blocks are not halved afterwards.
    assert [inside(trial) for trial in one_each(batches)] == [True, True, False]
    assert made.saved(found.sharing) == 20


def test_each_family_decides_for_itself_about_sharing_inside() -> None:
    made = problem(v="bbbb", w="bb", x="eeee", y="ee")

    def met(trial: Trial) -> str:
        return "" if looks(trial) or (inside(trial) and "v" in trial.learners) else "vwxy"

    _, found = drive(made, "together", met, folds=0)
    sizes = sorted((slot[0].model, len(slot)) for slot in found.sharing.slots)
    assert sizes == [("v", 2), ("v", 2), ("x", 3), ("x", 3)]


def test_models_that_share_committed_weights_train_with_the_others_when_more_is_tried() -> None:
    # z shares the heaviest layer with x and y. When x and y try the lighter one, z must train with them.
    made = problem(x="bd", y="bd", z="d")

    def met(trial: Trial) -> str:
        return "xyz" if not looks(trial) and len(trial.sharing.slots) == 1 else ""

    batches, found = drive(made, "together", met, start="first", inside=False)
    assert found.sharing.models == set("xyz")
    late = one_each(batches)[-1]
    assert len(late.sharing.slots) == 2
    assert late.learners == set("xyz")


@pytest.mark.parametrize("count", [2, 5, 20, 40])
def test_the_number_of_looks_does_not_grow_with_the_number_of_models(count: int) -> None:
    made = problem(**{name: "ab" * (index % 7 + 1) for index, name in enumerate(ascii_letters[:count])})
    batches, _ = drive(made, "together", lambda trial: "" if looks(trial) else everyone(trial), folds=0)
    seen = [trial for batch in batches for trial in batch if looks(trial)]
    assert len(seen) == min(count, 4) + 1
    assert [trial.start.kind for trial in seen].count("average") == 1
    # Donors of different depth are among them.
    assert len({len(made.layers[trial.start.order[0]]) for trial in seen}) > 1
    # Of many models, a few are looked at, and all are trained.
    assert all(set(trial.start.order) == trial.learners == trial.sharing.models for trial in seen)
    assert {len(trial.learners) for trial in seen} == {min(count, 8)}
    trained = next(trial for batch in batches for trial in batch if not looks(trial))
    assert set(trained.start.order) == trained.learners == set(made.models)


def test_of_many_models_a_look_that_is_good_enough_is_where_training_of_all_begins() -> None:
    made = problem(**dict.fromkeys(ascii_letters[:12], "ab"))
    batches, found = drive(made, "together", everyone, folds=0)
    look, trained = (batch[0] for batch in batches)
    assert (looks(look), looks(trained)) == (True, False)
    assert trained.start.order[0] == look.start.order[0]
    assert trained.learners == set(made.models)
    assert found.sharing.models == set(made.models)
    assert made.saved(found.sharing) == 11 * 30


def test_where_no_look_is_usable_one_model_lends_its_weights_unchanged() -> None:
    made = problem(x="abbc", y="abbc", z="abb")

    def accuracies(trial: Trial) -> Mapping[str, float]:
        return dict.fromkeys("xyz", 0.05)

    batches, found = drive(made, "together", lambda trial: "" if looks(trial) else "yz", accuracies=accuracies)
    trained = [trial for batch in batches for trial in batch if not looks(trial)]
    # x stays as it is; y and z learn one after the other.
    assert [set(trial.learners) for trial in trained] == [{"y"}, {"z"}]
    assert all(trial.start == Start("donor", ("x", *trial.learners)) for trial in trained)
    assert sorted(len(slot) for slot in found.sharing.slots) == [2, 3, 3, 3]
    assert set(found.accuracies) == {"y", "z"}


def test_one_way_gives_back_what_the_model_pulls_at_hardest() -> None:
    made = problem(x="a" * 16, y="a" * 16)

    def met(trial: Trial) -> str:
        alone = trial.learners == {"y"} and not looks(trial)
        return "y" if alone and len(own_layers(trial, "y", 16)) >= 4 else ""

    batches, found = drive(made, "together", met, strained(made), lambda trial: 0.05)
    assert [len(slot) for slot in found.sharing.slots] == [2] * 12
    alone = [trial for batch in batches for trial in batch if trial.learners == {"y"}]
    # A look, a round, and two trials with private layers.
    assert [looks(trial) for trial in alone] == [True, False, False, False]


def test_with_a_start_that_is_given_nothing_is_lent() -> None:
    batches, _ = drive(problem(x="aa", y="aa"), "together", nobody, start="first", inside=False)
    assert all(trial.learners == {"x", "y"} for trial in one_each(batches))


def test_a_model_without_a_family_takes_weights_of_one() -> None:
    # z has a c in common with the family, 30 of 360 bytes; no training of all of them meets its targets.
    made = problem(x="cdd", y="cdd", z="cf")
    batches, found = drive(
        made, "together", lambda trial: "" if looks(trial) or len(trial.learners) == 3 else "xyz", inside=False
    )
    assert found.sharing.models == set("xyz")
    last = batches[-1][0]
    assert last.learners == {"z"}
    assert not looks(last)
    assert found.sharing.slots[0] == (Use("x", "0.weight"), Use("y", "0.weight"), Use("z", "0.weight"))


def test_layers_that_the_closed_form_calls_hopeless_are_not_tried_between_families() -> None:
    asked: list[tuple[str, ...]] = []

    def joint_error(slot: Sequence[Use]) -> float | None:
        asked.append(tuple(use.model for use in slot))
        return 0.7

    made = replace(problem(**TWO), joint_error=joint_error)
    batches, found = drive(made, "together", lambda trial: "" if looks(trial) else "vwxy", inside=False)
    # One layer of each family is compared; what families share inside is not asked.
    assert set(asked) == {("v", "x")} or set(asked) == {("x", "v")}
    assert {trial.learners for batch in batches for trial in batch} == {frozenset("vw"), frozenset("xy")}
    assert made.saved(found.sharing) == made.bytes / 2
    answers: Sequence[Callable[[object], float | None]] = (lambda slot: None, lambda slot: 0.3)
    for answer in answers:
        made = replace(made, joint_error=answer)
        found = drive(made, "together", lambda trial: "" if looks(trial) else "vwxy", inside=False)[1]
        assert made.saved(found.sharing) == made.bytes / 2 + 30
