"""Expected times and frames of plans, beside the same computed turn by turn and beside the simulation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from profiles import RULES, budgets, profile, profiles
from slow_plans import replay

from gemel.runtime.planning.planner import Plan
from gemel.runtime.planning.profile import Profile
from gemel.runtime.planning.residency import Rule, settled
from gemel.runtime.planning.simulate import simulate
from gemel.runtime.planning.timeline import Expectation, PlanTimeline

QUIET = Rule(fill=False)


def expected(
    known: Profile,
    budget: int,
    order: Sequence[str],
    sizes: Mapping[str, int] | Sequence[Mapping[str, int]],
    rule: Rule = QUIET,
    accuracy: bool = False,
) -> Expectation:
    """Return what the timeline expects of one or several choices of turn sizes."""
    queries = tuple(known.queries)
    each = [sizes] if isinstance(sizes, Mapping) else sizes
    rows = np.array([[size[query] for query in queries] for size in each])
    cycles = settled(known, budget, order, rule)
    return PlanTimeline(known, queries, cycles, fill=rule.fill, accuracy=accuracy).outcome(rows)


def frames(found: Expectation, place: int = 0) -> list[float]:
    rates: list[float] = found.frames[place].tolist()
    return rates


@st.composite
def cases(draw: st.DrawFn) -> tuple[Profile, int, list[str], dict[str, int], Rule]:
    known = draw(profiles())
    order = draw(st.permutations(sorted(known.queries)))
    # Some queries have a second turn.
    order += draw(st.lists(st.sampled_from(order), max_size=2))
    sizes = {query: draw(st.sampled_from(known.batches(query))) for query in known.queries}
    rule = replace(draw(RULES), fill=False)
    return known, draw(budgets(known)), order, sizes, rule


@settings(deadline=None, max_examples=80)
@given(cases())
def test_it_is_what_follows_turn_by_turn(
    case: tuple[Profile, int, list[str], dict[str, int], Rule],
) -> None:
    known, budget, order, sizes, rule = case
    curves = {name: spec.model_copy(update={"staleness": (0.9, 0.7, 0.2)}) for name, spec in known.queries.items()}
    known = known.model_copy(update={"queries": curves})
    # A device that is just busy needs very many cycles until they are alike.
    loads = [
        sum(spec.fps * known.run_ms(name, size) / size / 1e3 for name, spec in known.queries.items())
        for size in (1, 2, 4)
    ]
    assume(not any(0.85 < load < 1.2 for load in loads))
    found = expected(known, budget, order, sizes, rule, accuracy=True)
    plain = replay(known, budget, order, rule, sizes, 200)
    assert frames(found) == pytest.approx(list(plain.frames.values()), rel=0.05)
    assert found.accuracy is not None
    assert found.accuracy[0].tolist() == pytest.approx(list(plain.accuracy.values()), abs=0.05)
    if plain.blocked_ms > 5:
        assert found.cycle_ms[0] == pytest.approx(plain.cycle_ms, rel=0.05)
        assert found.blocked_ms[0] == pytest.approx(plain.blocked_ms, rel=0.05, abs=2)


def test_many_choices_of_sizes_are_as_good_as_each_alone() -> None:
    run = {name: {1: 10.0, 2: 14.0, 4: 22.0} for name in "abc"}
    known = profile({"a": ["A"], "b": ["B"], "c": ["C"]}, {"A": 40, "B": 30, "C": 20}, run, 30, sla_ms=400.5)
    sizes = [dict(zip("abc", each, strict=True)) for each in ((1, 1, 1), (4, 2, 1), (2, 4, 4))]
    for rule in (QUIET, Rule()):
        together = expected(known, 60, "abcb", sizes, rule)
        for place, each in enumerate(sizes):
            alone = expected(known, 60, "abcb", each, rule)
            assert frames(alone) == pytest.approx(frames(together, place))
            assert alone.cycle_ms[0] == pytest.approx(together.cycle_ms[place])
            assert alone.blocked_ms[0] == pytest.approx(together.blocked_ms[place])


def test_loads_that_nothing_hides_make_the_cycle() -> None:
    # Each load takes 40 ms, and the model before it has to be evicted first.
    known = profile({"a": ["A"], "b": ["B"]}, {"A": 40, "B": 40}, 10.0, 1000)
    found = expected(known, 40, "ab", {"a": 1, "b": 1})
    assert (found.cycle_ms[0], found.blocked_ms[0]) == pytest.approx((100, 80))
    assert frames(found) == pytest.approx([10, 10])


def test_loads_are_hidden_by_runs_where_memory_allows_it() -> None:
    known = profile({"a": ["A"], "b": ["B"], "c": ["C"]}, {"A": 40, "B": 40, "C": 40}, 50.0, 1000)
    found = expected(known, 80, "abc", dict.fromkeys("abc", 1))
    assert (found.cycle_ms[0], found.blocked_ms[0]) == pytest.approx((150, 0))


def test_one_link_loads_for_all() -> None:
    # While a runs for 10 ms, the loads of b begin; those of c begin when b begins.
    known = profile({"a": ["A"], "b": ["B"], "c": ["C"]}, {"A": 40, "B": 40, "C": 40}, 10.0, 1000)
    found = expected(known, 80, "abc", dict.fromkeys("abc", 1))
    assert found.cycle_ms[0] == pytest.approx(replay(known, 80, "abc", QUIET, dict.fromkeys("abc", 1)).cycle_ms)
    assert found.cycle_ms[0] < 150


def test_loads_for_several_turns_ahead_do_not_wait_for_turns_between() -> None:
    # S is used again and again; B is loaded for the third turn while the first runs.
    known = profile({"a": ["S"], "b": ["B"], "c": ["C"]}, {"S": 1, "B": 60, "C": 60}, 30.0, 1000)
    turns, sizes = "abac", dict.fromkeys("abc", 1)
    near = expected(known, 121, turns, sizes)
    far = expected(known, 121, turns, sizes, replace(QUIET, far=True))
    assert near.blocked_ms[0] == pytest.approx(replay(known, 121, turns, QUIET, sizes).blocked_ms)
    assert far.blocked_ms[0] == pytest.approx(replay(known, 121, turns, replace(QUIET, far=True), sizes).blocked_ms)


def test_loads_for_several_turns_ahead_fall_behind_until_turns_wait_for_them() -> None:
    # Of five models four fit. Runs take 150 ms a cycle, loads 175 ms: the link decides, although loads begin early.
    known = profile({name: [name.upper()] for name in "abcde"}, dict.fromkeys("ABCDE", 35), 30.0, 1000)
    found = expected(known, 4 * 35, "abcde", dict.fromkeys("abcde", 1), replace(QUIET, far=True))
    assert (found.cycle_ms[0], found.blocked_ms[0]) == pytest.approx((175, 25))
    assert frames(found) == pytest.approx([1000 / 175] * 5)


def test_nothing_is_expected_of_a_wait_before_there_must_be_a_frame() -> None:
    # While B is awaited, a could run again, 30 ms after it took the newest frame. Cycles and cameras are in step: there
    # is never a frame then.
    run = {"a": {1: 20.0, 2: 40.0}, "b": {1: 5.0, 2: 10.0}, "c": {1: 15.0, 2: 30.0}}
    known = profile({"a": ["A"], "b": ["B"], "c": ["C"]}, {"A": 25, "B": 45, "C": 25}, run, 30)
    sizes = {"a": 1, "b": 1, "c": 2}
    plan = Plan(("a", "b", "c"), sizes, Rule(), frozenset(), 0.0, 0.0, {})
    found = {name: each.processed / 20 for name, each in simulate(known, 75, plan, 20).queries.items()}
    expectation = dict(zip("abc", frames(expected(known, 75, "abc", sizes, Rule())), strict=True))
    assert expectation["a"] == pytest.approx(found["a"], rel=0.02) == pytest.approx(10, rel=0.02)


def test_a_query_with_two_turns_gets_more() -> None:
    known = profile({name: ["s"] for name in "abcd"}, None, 20.0, 1000)
    once, twice = (expected(known, 1, order, dict.fromkeys("abcd", 1)) for order in ("abcd", "abcad"))
    assert frames(once) == pytest.approx([12.5] * 4)
    assert frames(twice) == pytest.approx([20, 10, 10, 10])


def test_only_frames_that_can_be_answered_in_time_count() -> None:
    # A cycle takes 208 ms. Of the SLA of 100 ms a run takes 4, so frames of the last 96 ms are in time.
    known = profile({"a": ["A"], "b": ["B"]}, {"A": 100, "B": 100}, {"a": {1: 4, 8: 4}, "b": {1: 4}}, 10)
    found = expected(known, 100, "ab", {"a": 8, "b": 1})
    assert frames(found) == pytest.approx([10 * 96 / 208] * 2)
    patient = known.model_copy(
        update={"queries": {name: spec.model_copy(update={"sla_ms": 1000}) for name, spec in known.queries.items()}}
    )
    assert frames(expected(patient, 100, "ab", {"a": 8, "b": 1})) == pytest.approx([10, 1e3 / 208], rel=1e-3)


def test_a_query_that_is_always_late_counts_what_it_answers() -> None:
    known = profile({"a": ["A"], "b": ["B"]}, None, {"a": {1: 150}, "b": {1: 10}}, 10)
    found = expected(known, 2, "ab", {"a": 1, "b": 1})
    assert frames(found)[0] == pytest.approx(1e3 / found.cycle_ms[0])


def test_models_that_take_no_time_answer_everything() -> None:
    known = profile({"a": ["A"], "b": []}, None, 0.0)
    assert frames(expected(known, 1, "ab", {"a": 1, "b": 1})) == pytest.approx([10, 10])


def test_a_device_with_time_to_spare_answers_everything() -> None:
    known = profile({"a": ["A"], "b": ["B"]}, None, 1.0, {"a": 1, "b": 30})
    for rule in (QUIET, Rule()):
        assert frames(expected(known, 2, "ab", {"a": 1, "b": 1}, rule)) == pytest.approx([1, 30])


def test_answers_are_worth_less_the_older_they_are() -> None:
    # A turn a query every 200 ms: of 4 frames one is answered, and three get answers 1, 2 and 3 frames old.
    run = {name: {1: 100.0} for name in "ab"}
    known = profile({name: ["s"] for name in "ab"}, None, run, 20, sla_ms=500)
    for curve, mean in (((0.8, 0.6, 0.4), 0.7), ((0.0,), 0.25), ((1.0,), 1.0), ((0.5, 0.0), 0.375)):
        specs = {name: spec.model_copy(update={"staleness": curve}) for name, spec in known.queries.items()}
        found = expected(known.model_copy(update={"queries": specs}), 1, "ab", {"a": 1, "b": 1}, accuracy=True)
        assert found.accuracy is not None
        assert found.accuracy[0].tolist() == pytest.approx([mean, mean])


def test_accuracies_are_computed_only_where_they_are_asked_for() -> None:
    known = profile({"a": ["A"]})
    assert expected(known, 1, "a", {"a": 1}).accuracy is None


class TestFill:
    """A and B take 100 ms to load each, and only one of them fits beside C."""

    known = profile(
        {"a": ["A"], "b": ["B"], "c": ["C"]}, {"A": 100, "B": 100}, 2, {"a": 5, "b": 5, "c": 100}, sla_ms=400
    )
    sizes = dict.fromkeys("abc", 1)

    def test_who_is_in_memory_runs_while_others_wait(self) -> None:
        plain = expected(self.known, 101, "abc", self.sizes)
        filled = expected(self.known, 101, "abc", self.sizes, Rule())
        assert frames(plain)[2] == pytest.approx(1e3 / plain.cycle_ms[0])
        assert frames(filled)[2] > 90
        # Nobody else is held up.
        assert filled.cycle_ms[0] == pytest.approx(plain.cycle_ms[0], rel=0.02)
        assert frames(filled)[:2] == pytest.approx(frames(plain)[:2], rel=0.02)

    def test_not_more_than_the_time_allows(self) -> None:
        slow = profile({name: [name.upper()] for name in "abc"}, {"A": 100, "B": 100}, 30, {"a": 5, "b": 5, "c": 100})
        filled = expected(slow, 101, "abc", self.sizes, Rule())
        assert frames(filled)[2] < 1e3 / 30

    def test_nobody_runs_who_takes_longer_than_the_wait(self) -> None:
        run = {"a": {1: 2.0}, "b": {1: 2.0}, "c": {1: 101.0}}
        slow = profile({name: [name.upper()] for name in "abc"}, {"A": 100, "B": 100}, run, 5, sla_ms=400)
        plain, filled = (expected(slow, 101, "abc", self.sizes, rule) for rule in (QUIET, Rule()))
        assert frames(plain) == pytest.approx(frames(filled))

    def test_nobody_runs_whose_weights_are_on_their_way(self) -> None:
        # c shares S with b; S loads first, then B, and while B loads c could run, but not while S does.
        segments = {
            "A": {"bytes": 2, "load_ms": 1.0},
            "S": {"bytes": 1, "load_ms": 100.0},
            "B": {"bytes": 2, "load_ms": 50.0},
        }
        known = profile({"a": ["A"], "b": ["S", "B"], "c": ["S"]}, None, 1, 1000, sla_ms=1000, segments=segments)
        filled = expected(known, 3, "abc", self.sizes, Rule())
        assert frames(filled)[2] * filled.cycle_ms[0] / 1e3 < 55
