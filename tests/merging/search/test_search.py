"""Tests of the search: what it commits after trials, which are faked here."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from quiet_journal import Quiet

from gemel.errors import GemelError
from gemel.merging.forms.form_map import Form, FormMap
from gemel.merging.forms.quantize import Coded
from gemel.merging.layers.layers import Layer
from gemel.merging.layers.problem import Problem
from gemel.merging.layers.sharing import SharingMap, Use
from gemel.merging.search.keeping import kept
from gemel.merging.search.search import Found, Job, search
from gemel.merging.strategies import Search, Verdict
from gemel.merging.training.subjects import State
from gemel.merging.training.training import Recipe
from gemel.merging.training.trial import Outcome, Start, Trial

LAYERS = 3
MODELS = "abcd"
PROBLEM = Problem(
    {model: tuple(Layer(model, str(i), "conv", (1,), 10, False) for i in range(LAYERS)) for model in MODELS}
)
ORIGINALS: dict[str, State] = {
    model: {f"{i}.weight": torch.tensor([float(10 * ord(model) + i)]) for i in range(LAYERS)} | {"mark": torch.zeros(1)}
    for model in MODELS
}


def shared(*slots: str) -> SharingMap:
    """Return a sharing map; ``"ab0"`` shares layer 0 of the models a and b."""
    return SharingMap().joined([Use(model, f"{slot[-1]}.weight") for model in slot[:-1]] for slot in slots)


def trial(sharing: SharingMap, learners: str, recipe: Recipe | None = Recipe(1), **fields: Any) -> Trial:  # noqa: B008
    """Return a trial in which the models ``learners`` train."""
    return Trial("test", sharing, frozenset(learners), recipe=recipe, **fields)


class Trainer:
    """Fake trainer: sets the weights of the models in training to the number of the trial.

    Args:
        met: for each trial in order, the names of the models that meet their goals.
    """

    def __init__(self, *met: str) -> None:
        self._met = list(met)
        self.jobs: list[Job] = []
        self.accuracies: dict[tuple[str, float], float] = {}

    def __call__(self, jobs: Sequence[Job]) -> Generator[Outcome, None, None]:
        for job in jobs:
            yield self._run(job)

    def _run(self, job: Job) -> Outcome:
        """Run one job; weights shared with models that do not train are copied from these."""
        self.jobs.append(job)
        number, met = float(len(self.jobs)), frozenset(self._met.pop(0)) & job.trial.learners
        states = {
            name: {key: torch.full_like(value, number) for key, value in job.states[name].items()}
            for name in job.trial.learners
        }
        for slot in job.trial.sharing.slots:
            fixed = [use for use in slot if use.model not in job.trial.learners]
            for use in slot:
                if fixed and use.model in states:
                    states[use.model][use.parameter] = job.states[fixed[0].model][fixed[0].parameter]
        scores = {name: number + (0.5 if name in met else 0) for name in job.trial.learners}
        return Outcome(scores, scores, met, 7, 0.0, "done", {}, states)


def ask(*batches: Iterable[Trial], told: list[Sequence[Verdict]] | None = None) -> Search:
    """Yield fixed batches of trials whatever their verdicts; the verdicts are appended to ``told``."""
    for batch in batches:
        verdicts = yield list(batch)
        if told is not None:
            told.append(verdicts)


def marks(found: Found) -> dict[str, int]:
    """Return model name -> number of the trial that its committed weights come from."""
    return {name: int(state["mark"]) for name, state in found.states.items()}


def run(trainer: Trainer, *batches: Iterable[Trial]) -> Found:
    """Run a search over fixed batches of trials."""
    return search(PROBLEM, ask(*batches), ORIGINALS, trainer, Quiet())


def test_all_models_meet() -> None:
    trainer = Trainer("abc")
    found = run(trainer, [trial(shared("abc0", "ab1"), "abc")])
    assert found.sharing == shared("abc0", "ab1")
    assert marks(found) == {"a": 1, "b": 1, "c": 1, "d": 0}
    assert found.accuracies == {"a": 1.5, "b": 1.5, "c": 1.5}
    assert found.samples == 7
    assert [verdict.accepted for verdict in found.verdicts] == [True]


def test_the_models_that_meet_keep_what_they_share_with_each_other() -> None:
    found = run(Trainer("ab"), [trial(shared("abc0", "bc1"), "abc")])
    assert found.sharing == shared("ab0")
    assert marks(found) == {"a": 1, "b": 1, "c": 0, "d": 0}
    assert found.accuracies == {"a": 1.5, "b": 1.5}


@pytest.mark.parametrize("met", ["", "a"])
def test_one_model_alone_has_nothing_to_share_with(met: str) -> None:
    found = run(Trainer(met), [trial(shared("abc0"), "abc")])
    assert found.sharing == SharingMap()
    assert found.states == ORIGINALS


def test_one_model_alone_may_share_with_itself() -> None:
    inside = SharingMap().joined([[Use("a", "0.weight"), Use("a", "1.weight"), Use("b", "0.weight")]])
    found = run(Trainer("a"), [trial(inside, "ab")])
    assert found.sharing.slots == ((Use("a", "0.weight"), Use("a", "1.weight")),)
    assert marks(found) == {"a": 1, "b": 0, "c": 0, "d": 0}


def test_who_misses_holds_those_back_that_it_shares_with() -> None:
    # b goes back to its earlier weights. As a shares with b since the first trial, a and c cannot keep their new ones.
    found = run(Trainer("ab", "ac"), [trial(shared("ab0"), "ab")], [trial(shared("abc0", "abc1"), "abc")])
    assert found.sharing == shared("ab0")
    assert marks(found) == {"a": 1, "b": 1, "c": 0, "d": 0}
    assert [verdict.accepted for verdict in found.verdicts] == [True, False]


def test_models_that_share_with_none_who_misses_are_kept() -> None:
    both = [trial(shared("ab0"), "ab")], [trial(shared("abcd0"), "abcd")]
    found = run(Trainer("ab", "cd"), *both)
    assert found.sharing == shared("ab0", "cd0")
    assert marks(found) == {"a": 1, "b": 1, "c": 2, "d": 2}
    # a and b have their accuracies of the first trial, as they went back to its weights.
    assert found.accuracies == {"a": 1.5, "b": 1.5, "c": 2.5, "d": 2.5}


def test_models_that_do_not_learn_keep_their_weights() -> None:
    trainer = Trainer("ab", "c")
    found = run(trainer, [trial(shared("ab0"), "ab")], [trial(shared("abc0"), "c")])
    assert found.sharing == shared("abc0")
    assert marks(found) == {"a": 1, "b": 1, "c": 2, "d": 0}
    assert found.states["c"]["0.weight"] is found.states["a"]["0.weight"]
    assert trainer.jobs[1].states["a"] is found.states["a"]
    assert trainer.jobs[1].shared == shared("ab0")


def test_a_trial_that_saves_no_more_changes_nothing() -> None:
    found = run(Trainer("ab", "ab"), [trial(shared("ab0"), "ab")], [trial(shared("ab0"), "ab")])
    assert marks(found)["a"] == 1
    assert [verdict.accepted for verdict in found.verdicts] == [True, False]


def test_another_round_that_saves_no_more_is_kept_if_it_brings_queries_further() -> None:
    again = trial(shared("abc0"), "abc", base="last")
    found = run(Trainer("ab", "ab"), [trial(shared("abc0"), "abc")], [again])
    # Nothing new is shared, but the later weights are more accurate.
    assert [verdict.accepted for verdict in found.verdicts] == [True, False]
    assert marks(found) == {"a": 2, "b": 2, "c": 0, "d": 0}
    assert found.accuracies == {"a": 2.5, "b": 2.5}

    class Tiring(Trainer):
        """Fake trainer with falling accuracies."""

        def _run(self, job: Job) -> Outcome:
            outcome = super()._run(job)
            scores = {name: 1 / len(self.jobs) for name in outcome.accuracies}
            return replace(outcome, accuracies=scores, relative=scores)

    found = run(Tiring("ab", "ab"), [trial(shared("abc0"), "abc")], [again])
    assert marks(found) == {"a": 1, "b": 1, "c": 0, "d": 0}
    assert found.accuracies == {"a": 1.0, "b": 1.0}


def test_on_the_last_weights() -> None:
    trainer = Trainer("a", "b")
    told: list[Sequence[Verdict]] = []
    steps = ask([trial(shared("ab0"), "ab")], [trial(shared("ab0"), "b", base="last")], told=told)
    found = search(PROBLEM, steps, ORIGINALS, trainer, Quiet())
    # a meets its goal in the first trial, which is not committed. b goes on from there and meets its goal.
    assert not told[0][0].accepted
    assert int(trainer.jobs[1].states["b"]["mark"]) == 1
    assert found.sharing == shared("ab0")
    assert marks(found) == {"a": 1, "b": 2, "c": 0, "d": 0}
    assert found.accuracies == {"a": 1.5, "b": 2.5}


def test_a_model_that_met_once_and_then_learned_on_must_meet_again() -> None:
    found = run(Trainer("a", "b"), [trial(shared("ab0"), "ab")], [trial(shared("ab0"), "ab", base="last")])
    assert found.sharing == SharingMap()


def test_on_the_committed_weights_what_failed_is_forgotten() -> None:
    trainer = Trainer("a", "b")
    found = run(trainer, [trial(shared("ab0"), "ab")], [trial(shared("ab0"), "b")])
    assert int(trainer.jobs[1].states["a"]["mark"]) == 0
    # In the second trial a has its original weights and does not learn, so b shares with the original a.
    assert found.sharing == shared("ab0")
    assert marks(found) == {"a": 0, "b": 2, "c": 0, "d": 0}
    assert found.accuracies == {"b": 2.5}


def test_a_trial_that_went_wrong_leaves_the_last_weights() -> None:
    trainer = Trainer("a", "b")

    def diverge_first(jobs: Sequence[Job]) -> Generator[Outcome, None, None]:
        if len(trainer.jobs) == 1:
            trainer.jobs.append(jobs[0])
            yield Outcome({"b": 0.0}, {"b": 0.0}, frozenset(), 0, 0.0, "the loss is nan")
        else:
            yield from trainer(jobs)

    last = trial(shared("ab0"), "b", base="last")
    found = search(PROBLEM, ask([trial(shared("ab0"), "ab")], [last], [last]), ORIGINALS, diverge_first, Quiet())
    assert int(trainer.jobs[2].states["b"]["mark"]) == 1
    assert found.sharing == shared("ab0")


def test_a_start_that_is_good_enough_is_kept_without_a_step() -> None:
    starts = [trial(shared("ab0"), "ab", None), trial(shared("ab0", "ab1"), "ab", None)]
    found = run(Trainer("a", "ab"), starts)
    # b misses its goal in the first trial. A trial without training is committed as a whole or not at all.
    assert [verdict.accepted for verdict in found.verdicts] == [False, True]
    assert found.sharing == shared("ab0", "ab1")
    assert marks(found) == {"a": 2, "b": 2, "c": 0, "d": 0}


def test_a_look_does_not_change_what_the_next_trial_goes_on_from() -> None:
    trainer = Trainer("a", "", "")
    run(
        trainer,
        [trial(shared("ab0"), "ab")],
        [trial(shared("ab0"), "ab", None)],
        [trial(shared("ab0"), "ab", base="last")],
    )
    assert int(trainer.jobs[2].states["b"]["mark"]) == 1


def test_trials_side_by_side() -> None:
    trainer = Trainer("ab", "cd")
    found = run(trainer, [trial(shared("ab0"), "ab"), trial(shared("cd0"), "cd")])
    assert found.sharing == shared("ab0", "cd0")
    assert marks(found) == {"a": 1, "b": 1, "c": 2, "d": 2}
    assert all(job.shared == SharingMap() for job in trainer.jobs)


def test_of_trials_side_by_side_that_touch_one_model_the_first_is_kept() -> None:
    # Both trials begin with the original a. If both were committed, b would share weights that a no longer has.
    found = run(Trainer("ab", "ac"), [trial(shared("ab0"), "ab"), trial(shared("ac0", "ac1"), "ac")])
    assert found.sharing == shared("ab0")
    assert marks(found) == {"a": 1, "b": 1, "c": 0, "d": 0}
    found = run(Trainer("a", "ac"), [trial(shared("ab0"), "ab"), trial(shared("ac0", "ac1"), "ac")])
    assert found.sharing == shared("ac0", "ac1")


def test_a_trial_is_skipped_when_an_earlier_one_of_its_batch_changed_its_models() -> None:
    trainer, told = Trainer("ab", "cd"), list[Sequence[Verdict]]()
    batch = [trial(shared("ab0"), "ab"), trial(shared("ac0"), "ac"), trial(shared("cd0"), "cd")]
    found = search(PROBLEM, ask(batch, told=told), ORIGINALS, trainer, Quiet())
    assert [verdict.outcome.ended for verdict in told[0]] == ["done", "skipped", "done"]
    assert [verdict.accepted for verdict in told[0]] == [True, False, True]
    assert [job.trial for job in trainer.jobs] == [batch[0], batch[2]]
    # The trial that did not run is not reported.
    assert [verdict.trial for verdict in found.verdicts] == [batch[0], batch[2]]


def test_every_trial_of_a_batch_is_recorded_when_it_is_over() -> None:
    journal = Quiet()
    first, second = trial(shared("ab0"), "ab"), trial(shared("cd0"), "cd")
    seen: list[int] = []
    trainer = Trainer("ab", "c")

    def execute(jobs: Sequence[Job]) -> Generator[Outcome, None, None]:
        for outcome in trainer(jobs):
            seen.append(len(journal.recorded))
            yield outcome

    search(PROBLEM, ask([first, second]), ORIGINALS, execute, journal)
    assert seen == [0, 1]
    assert [each for each, _, _ in journal.recorded] == [first, second]
    (_, found, last), (_, after, end) = journal.recorded
    assert [int(found[name]["mark"]) for name in MODELS] == [1, 1, 0, 0]
    assert [int(last[name]["mark"]) for name in MODELS] == [1, 1, 0, 0]
    assert [int(after[name]["mark"]) for name in MODELS] == [1, 1, 0, 0]
    assert [int(end[name]["mark"]) for name in MODELS] == [1, 1, 2, 2]


@pytest.mark.parametrize("recorded", [1, 2, 3])
def test_a_kill_between_the_looks_of_a_batch_loses_only_the_running_look(recorded: int) -> None:
    looks = [trial(shared("abcd0"), "abcd", None, start=Start("donor", (name,))) for name in MODELS]
    told: list[Sequence[Verdict]] = []
    whole = search(PROBLEM, ask(looks, told=told), ORIGINALS, Trainer("a", "b", "c", "d"), Quiet())
    known = [verdict.outcome for verdict in whole.verdicts[:recorded]]
    trainer, journal, again = Trainer(*"abcd"[recorded:]), Quiet(*known), list[Sequence[Verdict]]()
    search(PROBLEM, ask(looks, told=again), ORIGINALS, trainer, journal)
    assert [job.trial for job in trainer.jobs] == looks[recorded:]
    assert [each for each, _, _ in journal.recorded] == looks[recorded:]
    assert [verdict.outcome.met for verdict in again[0]] == [verdict.outcome.met for verdict in told[0]]


def test_a_kill_in_a_batch_after_a_commit_resumes_to_the_same_end() -> None:
    batch = [trial(shared("ab0"), "ab"), trial(shared("ab1"), "ab"), trial(shared("cd0"), "cd")]
    whole = run(Trainer("ab", "cd"), batch)
    trainer = Trainer("", "cd")
    trainer.jobs.append(Job(batch[0], {}, SharingMap()))  # Counts as the trial that ran before the kill.
    trainer._met.pop(0)
    states = {name: whole.states[name] if name in "ab" else ORIGINALS[name] for name in MODELS}
    journal = Quiet(whole.verdicts[0].outcome, states=states)
    found = search(PROBLEM, ask(batch), ORIGINALS, trainer, journal)
    assert found == whole
    assert trainer.jobs[-1].shared == SharingMap()


def test_no_batch_begins_after_the_deadline() -> None:
    trainer = Trainer()
    found = search(PROBLEM, ask([trial(shared("ab0"), "ab")]), ORIGINALS, trainer, Quiet(), -math.inf)
    assert found.sharing == SharingMap()
    assert not trainer.jobs


def test_what_was_over_when_the_deadline_cut_a_batch_off_is_kept() -> None:
    trainer, journal = Trainer("ab", "cd"), Quiet()
    told: list[Sequence[Verdict]] = []

    def execute(jobs: Sequence[Job]) -> Generator[Outcome, None, None]:
        yield from trainer(jobs[:1])

    batches = [trial(shared("ab0"), "ab"), trial(shared("cd1"), "cd")], [trial(shared("abcd0"), "abcd")]
    found = search(PROBLEM, ask(*batches, told=told), ORIGINALS, execute, journal)
    assert len(journal.recorded) == len(found.verdicts) == 1
    assert not told
    assert found.sharing == shared("ab0")


def test_weights_of_trials_that_are_over_are_let_go() -> None:
    told: list[Sequence[Verdict]] = []
    steps = ask([trial(shared("ab0"), "ab")], [trial(shared("ab1"), "ab")], told=told)
    found = search(PROBLEM, steps, ORIGINALS, Trainer("ab", ""), Quiet())
    assert [verdict.outcome.states for verdict in found.verdicts] == [{}, {}]
    assert told[0][0].outcome.states == {}


def test_what_is_recalled_is_found_again_however_late_it_is() -> None:
    """Check that a resumed search finds everything again even if its deadline passes while models are loaded."""
    batches = [trial(shared("ab0"), "ab")], [trial(shared("ab0", "cd0"), "cd")], [trial(shared("abcd0"), "abcd")]
    trainer = Trainer("ab", "cd")
    whole = run(trainer, *batches[:2])
    known = [verdict.outcome for verdict in whole.verdicts]
    journal = Quiet(*known, states=whole.states)
    found = search(PROBLEM, ask(*batches), ORIGINALS, trainer, journal, -math.inf)
    assert found == whole
    assert not journal.recorded
    assert len(trainer.jobs) == 2


def test_weights_that_differ_are_never_reported_as_shared() -> None:
    def careless(jobs: Sequence[Job]) -> Generator[Outcome, None, None]:
        states = {name: {**ORIGINALS[name]} for name in "ab"}
        yield Outcome({}, {}, frozenset("ab"), 0, 0.0, "done", {}, states)

    with pytest.raises(GemelError, match=r"a: 0\.weight was to be shared with b: 0\.weight, but their weights differ"):
        search(PROBLEM, ask([trial(shared("ab0"), "ab")]), ORIGINALS, careless, Quiet())


def test_kept() -> None:
    nothing = SharingMap()
    assert kept(shared("abc0"), nothing, frozenset("ab")) == shared("ab0")
    assert kept(shared("abc0"), nothing, frozenset()) == nothing
    assert kept(shared("abc0"), shared("ab0"), frozenset("ac")) is None
    assert kept(shared("abcd0"), shared("ab0"), frozenset("cd")) == shared("ab0", "cd0")
    # a and c are tied through the shared weights of b.
    assert kept(shared("abcd0"), shared("ab0", "bc1"), frozenset("ad")) is None


Script = list[list[tuple[list[str], str, bool]]]
SLOTS = st.lists(
    st.builds(
        lambda models, layer: "".join(sorted(models)) + str(layer),
        st.sets(st.sampled_from(MODELS), min_size=2),
        st.integers(0, LAYERS - 1),
    ),
    min_size=1,
    max_size=3,
)
MET = st.builds("".join, st.sets(st.sampled_from(MODELS)))


@given(st.lists(st.lists(st.tuples(SLOTS, MET, st.booleans()), min_size=1, max_size=2), max_size=5))
def test_only_models_that_met_share_and_saving_never_falls(script: Script) -> None:
    """Check invariants for random requests in the manner of the published heuristic, with random outcomes."""
    trainer = Trainer(*(met for batch in script for _, met, _ in batch))
    saved = [0]

    def strategy() -> Search:
        sharing = SharingMap()
        for batch in script:
            trials = []
            for slots, _, trains in batch:
                wanted = sharing.joined(shared(*slots).slots)
                learners = wanted.tied(shared(*slots).models)
                trials.append(trial(wanted, "".join(learners), Recipe(1) if trains else None))
            verdicts = yield trials
            sharing = verdicts[-1].sharing
            saved.append(PROBLEM.saved(sharing))

    journal = Quiet()
    found = search(PROBLEM, strategy(), ORIGINALS, trainer, journal)
    assert saved == sorted(saved)
    outcomes = [verdict.outcome for verdict in found.verdicts]
    for name, number in marks(found).items():
        if name in found.sharing.models:
            assert name in outcomes[number - 1].met
            assert found.accuracies[name] == number + 0.5
        else:
            assert found.states[name] is ORIGINALS[name]
    # Recalling the search gives the same result.
    assert [each for each, _, _ in journal.recorded] == [verdict.trial for verdict in found.verdicts]
    recalled = Quiet(*(verdict.outcome for verdict in found.verdicts), states=found.states)
    assert search(PROBLEM, strategy(), ORIGINALS, _never, recalled) == found


def _never(jobs: Sequence[Job]) -> Generator[Outcome, None, None]:
    """Fail if any job has to run."""
    raise AssertionError("everything is recalled")
    yield


def test_models_that_are_released_leave_everyone_else_as_it_is() -> None:
    start = Found(
        {name: {key: torch.ones(1) for key in state} for name, state in ORIGINALS.items()},
        shared("abc0", "ab1", "ad2"),
        dict.fromkeys(MODELS, 0.9),
        retained=frozenset(MODELS),
    )
    release = trial(SharingMap(), "ad", recipe=None, release=True)
    found = search(PROBLEM, once(release), ORIGINALS, Trainer(), Quiet(), start=start)
    assert found.sharing == shared("bc0")
    assert found.retained == {"b", "c"}
    assert set(found.accuracies) == {"b", "c"}
    assert all(found.states[name] is ORIGINALS[name] for name in "ad")
    assert all(found.states[name] is start.states[name] for name in "bc")
    # What the search began with is not changed.
    assert start.sharing == shared("abc0", "ab1", "ad2") and start.retained == set(MODELS)
    assert found.verdicts[0].accepted and found.verdicts[0].outcome.ended == "released"


def test_a_lent_weight_has_the_form_that_it_has_in_the_donor() -> None:
    use, other = Use("a", "0.weight"), Use("b", "0.weight")
    code = Coded(torch.ones(1, dtype=torch.int8), torch.ones(1), 8)
    start = Found(dict(ORIGINALS), forms=FormMap().joined({use: Form(8)}), codes={use: code})
    found = search(PROBLEM, once(trial(shared("ab0"), "b")), ORIGINALS, Trainer("b"), Quiet(), start=start)
    assert found.sharing == shared("ab0")
    assert found.forms == FormMap().joined({use: Form(8), other: Form(8)})
    assert found.codes == {use: code, other: code}
    assert found.states["a"] is ORIGINALS["a"]


@pytest.mark.parametrize(("ended", "accepted"), [("done", False), ("met", True)])
def test_models_that_all_share_are_given_more_to_share_only_with_something_to_spare(ended: str, accepted: bool) -> None:
    class Ending(Trainer):
        def _run(self, job: Job) -> Outcome:
            return replace(super()._run(job), ended=ended if len(self.jobs) > 1 else "done")

    recipe = Recipe(1, spare=0.5)
    steps = [[trial(shared("ab0"), "ab", recipe)], [trial(shared("ab0", "ab1"), "ab", recipe)]]
    found = run(Ending("ab", "ab"), *steps)
    assert [verdict.accepted for verdict in found.verdicts] == [True, accepted]
    assert found.sharing == (shared("ab0", "ab1") if accepted else shared("ab0"))
    assert marks(found)["a"] == (2 if accepted else 1)


def test_models_that_get_the_last_weights_without_learning_lose_their_forms() -> None:
    use, other, kept_use = Use("a", "0.weight"), Use("b", "1.weight"), Use("d", "0.weight")
    # Forms of two models save more than one layer that they share, and less than a layer of three models.
    forms = FormMap().joined({use: Form(0, "0"), kept_use: Form(0, "0"), other: Form(0, "1")})
    start = Found(dict(ORIGINALS), forms=forms)
    told: list[Sequence[Verdict]] = []
    steps = ask([trial(shared("abc0"), "abc")], [trial(shared("abc0"), "c", base="last")], told=told)
    found = search(PROBLEM, steps, ORIGINALS, Trainer("ab", "c"), Quiet(), start=start)
    assert [verdict.accepted for (verdict,) in told] == [False, True]
    assert found.sharing == shared("abc0")
    assert marks(found) == {"a": 1, "b": 1, "c": 2, "d": 0}
    assert found.forms == FormMap().joined({kept_use: Form(0, "0")})


def once(*trials: Trial) -> Search:
    """Return a strategy that asks for one trial after the other."""
    for each in trials:
        yield [each]


def test_sharing_that_saves_hardly_more_than_the_forms_is_not_trained() -> None:
    # Sharing saves as much as the forms of two models, so the hours of a training would gain nothing.
    forms = FormMap().joined({Use(model, "0.weight"): Form(0, "0") for model in "ab"})
    start = Found(dict(ORIGINALS), forms=forms)
    trainer = Trainer("ab")
    found = search(PROBLEM, once(trial(shared("ab0"), "ab")), ORIGINALS, trainer, Quiet(), start=start)
    assert not trainer.jobs and found.verdicts[0].outcome.ended == "saves less"
    assert found.forms == forms
