"""Plans are compared with every order and every choice of turn sizes, computed turn by turn in the plainest way."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from profiles import RULES, budgets, profile, profiles
from slow_plans import choices, every_cycle, replay, shares, standing_accuracy

from gemel.errors import InputError
from gemel.runtime.planning.objectives import OBJECTIVES, ObjectiveName
from gemel.runtime.planning.planner import POLICIES, Plan, Policy, check_policy, make_plan
from gemel.runtime.planning.profile import Profile, unmerged
from gemel.runtime.planning.residency import Rule, steps
from gemel.runtime.planning.simulate import simulate

QUIET = Rule(fill=False)


@st.composite
def cases(draw: st.DrawFn, most: int = 4, widest: int = 2) -> tuple[Profile, int]:
    known = draw(profiles(most, widest))
    return known, draw(budgets(known))


def scattered(seed: int, count: int, segments: int, run: Mapping[int, float], each: int = 3) -> Profile:
    """Return a profile of models that each have ``each`` segments, drawn from segments of random sizes."""
    chance = random.Random(seed)
    names = [f"s{index}" for index in range(segments)]
    models = {f"q{index}": chance.sample(names, each) for index in range(count)}
    fps = {name: float(chance.randint(2, 30)) for name in models}
    sizes = {name: chance.randint(1, 60) for name in names}
    return profile(models, sizes, dict.fromkeys(models, run), fps, sla_ms=400.5)


def between(known: Profile, part: float) -> int:
    """Return a budget between what the largest model needs (0) and what all need together (1)."""
    least, most = known.budget("min"), known.budget("all")
    return least + int((most - least) * part)


def with_queries(known: Profile, **fields: Mapping[str, object]) -> Profile:
    """Return the profile with other fields of some queries, as query -> field -> value."""
    specs = {name: spec.model_copy(update=fields.get(name, {})) for name, spec in known.queries.items()}
    return known.model_copy(update={"queries": specs})


@pytest.mark.parametrize("seed", range(8))
def test_no_order_and_no_turn_sizes_give_the_slowest_query_more(seed: int) -> None:
    known = scattered(seed, 4, 6, {1: 8, 4: 20})
    budget = between(known, (seed % 3) / 3)
    found = make_plan(known, budget, Policy(QUIET))
    best = max(
        shares(known, replay(known, budget, order, QUIET, sizes).frames)[0]
        for order in every_cycle(known)
        for sizes in choices(known)
    )
    again = replay(known, budget, found.order, found.rule, found.batches).frames
    # The plan does not promise what it does not give, and gives no less than any other.
    assert list(again.values()) == pytest.approx(list(found.frames.values()), rel=0.03)
    assert shares(known, again)[0] >= best * 0.98


@pytest.mark.parametrize("seed", range(4))
def test_no_order_and_no_turn_sizes_give_more_frames_in_all(seed: int) -> None:
    known = scattered(seed, 4, 6, {1: 8, 4: 20})
    budget = between(known, (seed % 2) / 2)
    found = make_plan(known, budget, Policy(QUIET, objective="sum"))
    best = max(
        sum(replay(known, budget, order, QUIET, sizes).frames.values())
        for order in every_cycle(known)
        for sizes in choices(known)
    )
    assert sum(found.frames.values()) >= best * 0.99
    assert sum(replay(known, budget, found.order, found.rule, found.batches).frames.values()) >= best * 0.98


@pytest.mark.parametrize("objective", ["max-min", "sum"])
def test_the_best_turn_sizes_where_models_run_many(objective: ObjectiveName) -> None:
    firsts, more = {"a": 15, "b": 35, "c": 40, "d": 15}, {"a": 12, "b": 18, "c": 18, "d": 2}
    run = {
        name: {size: first + more[name] * (size - 1.0) for size in (1, 2, 4, 6, 9)} for name, first in firsts.items()
    }
    fps = {"a": 10.0, "b": 20.0, "c": 15.0, "d": 30.0}
    known = profile({name: ["s"] for name in "abcd"}, None, run, fps, sla_ms=400.5)
    outcomes = [replay(known, 1, "abcd", QUIET, sizes, 8).frames for sizes in choices(known)]
    found = make_plan(known, 1, Policy(objective=objective)).frames
    if objective == "max-min":
        assert shares(known, found)[0] >= max(shares(known, each)[0] for each in outcomes) - 2e-3
    else:
        assert sum(found.values()) >= max(sum(each.values()) for each in outcomes) * 0.995


@settings(deadline=None, max_examples=15)
@given(cases(), st.sampled_from(sorted(POLICIES)))
def test_a_plan_says_what_it_costs(case: tuple[Profile, int], policy: str) -> None:
    known, budget = case
    rule = POLICIES[policy].rule
    found = make_plan(known, budget, POLICIES[policy])
    assert {*found.order} == {*known.queries}
    assert found.batches in choices(known)
    assert replace(found.rule, ahead=rule.ahead, far=rule.far) == rule
    assert found.accuracy is None
    assert 0 <= found.blocked_ms <= found.cycle_ms + 1e-6
    for query, spec in known.queries.items():
        assert 0 <= found.frames[query] <= spec.fps * (1 + 1e-9)
    if not rule.fill and sum(found.frames.values()) < 0.8 * sum(spec.fps for spec in known.queries.values()):
        plain = replay(known, budget, found.order, found.rule, found.batches, 200)
        assert sum(found.frames.values()) == pytest.approx(sum(plain.frames.values()), rel=0.05)
        assert found.cycle_ms == pytest.approx(plain.cycle_ms, rel=0.1)


def test_turn_sizes_for_many_queries() -> None:
    # A larger turn of one query makes the others slower; only if all turns grow, all queries gain.
    names = [f"q{index}" for index in range(16)]
    known = profile(
        {name: ["s"] for name in names}, None, {key: {1: 10.0, 2: 11.0, 4: 12.0} for key in names}, 30, sla_ms=400.5
    )
    found = make_plan(known, 1, Policy(listed=True))
    assert shares(known, found.frames)[0] == pytest.approx(4 / (16 * 12) * 1e3 / 30)


@settings(deadline=None, max_examples=8)
@given(cases(), RULES, st.sampled_from(["max-min", "sum"]))
def test_a_free_hand_is_no_worse_than_the_listed_order(
    case: tuple[Profile, int], rule: Rule, objective: ObjectiveName
) -> None:
    known, budget = case
    free, listed = (make_plan(known, budget, Policy(rule, listed, objective)).frames for listed in (False, True))
    if objective == "sum":
        assert sum(free.values()) >= sum(listed.values()) - 1e-5
    else:
        assert shares(known, free)[0] >= shares(known, listed)[0] - 1e-4


@settings(deadline=None, max_examples=6)
@given(cases(3), st.sampled_from(sorted(POLICIES)))
def test_the_same_plan_each_time(case: tuple[Profile, int], policy: str) -> None:
    assert make_plan(*case, POLICIES[policy]) == make_plan(*case, POLICIES[policy])


@pytest.mark.parametrize("policy", ["nexus", "nexus+shared", "lru"])
def test_baselines_keep_the_listed_order(policy: str) -> None:
    known = scattered(2, 9, 12, {1: 8, 4: 20})
    known = unmerged(known) if policy == "nexus" else known
    assert make_plan(known, known.budget("50%"), POLICIES[policy]).order == tuple(known.queries)


@pytest.mark.parametrize("count", [1, 3, 9])
def test_nothing_is_awaited_where_everything_fits(count: int) -> None:
    known = scattered(3, count, 12, {1: 8, 4: 20})
    found = make_plan(known, known.budget("all"))
    assert found.blocked_ms == 0
    assert found.pinned == {segment for query in known.queries for segment in known.segments_of(query)}


def test_a_budget_for_one_model_pins_nothing_but_what_all_share() -> None:
    known = profile({"a": ["S", "A"], "b": ["S", "B"], "c": ["S", "C"]})
    assert make_plan(known, 2).pinned == {"S"}
    assert make_plan(unmerged(known), 2).pinned == frozenset()


def dropped(known: Profile, budget: int, found: Plan) -> set[str]:
    """Return the segments that are evicted after many cycles, when these repeat."""
    count = len(found.order)
    turns = islice(steps(known, budget, found.order, found.rule), 30 * count, 80 * count)
    return {segment for turn in turns for part in (turn.ahead, turn.then) for segment in part.evict}


@settings(deadline=None, max_examples=8)
@given(cases())
def test_what_is_pinned_is_never_dropped(case: tuple[Profile, int]) -> None:
    found = make_plan(*case)
    assert not dropped(*case, found) & found.pinned


@pytest.mark.parametrize(("models", "budget"), [(5, 3), (5, 4), (6, 4), (6, 5)])
def test_what_is_pinned_is_never_dropped_though_cycles_differ(models: int, budget: int) -> None:
    # If not all of several equal models fit, one cycle loads other models than the next.
    known = profile({f"q{index}": [f"s{index}"] for index in range(models)})
    found = make_plan(known, budget)
    assert not dropped(known, budget, found) & found.pinned


def test_queries_that_share_are_neighbours() -> None:
    models = {"a": ["S", "A"], "b": ["T", "B"], "c": ["S", "C"], "d": ["T", "D"]}
    known = profile(models, {"S": 90, "T": 90}, 10, 60)
    turns = "".join(make_plan(known, 92, Policy(QUIET)).order) * 2
    # S and T are each loaded once in a cycle.
    kinds = "".join("S" if turn in "ac" else "T" for turn in turns[: len(turns) // 2])
    changes = sum(kinds[place - 1] != kinds[place] for place in range(len(kinds)))
    assert changes == 2


def test_a_query_that_is_always_late_has_a_turn() -> None:
    known = profile({"a": ["A"], "b": ["B"]}, None, {"a": {1: 150, 2: 160}, "b": {1: 10, 2: 12}}, 10)
    assert known.late() == ("a",)
    for policy in POLICIES.values():
        found = make_plan(known, 2, policy)
        assert found.batches["a"] == 1
        assert "a" in found.order
        assert found.frames["a"] > 0


def test_a_batch_that_leaves_no_time_to_wait_is_no_gain() -> None:
    # A turn of two frames takes all of the SLA: only frames that arrive as the turn begins are answered in time.
    known = profile({"a": ["A"]}, None, {"a": {1: 90, 2: 100}}, 100, sla_ms=100)
    found = make_plan(known, 1)
    assert found.batches == {"a": 1}
    assert found.frames["a"] == pytest.approx(1 / 90 * 1e3)


def test_a_slow_query_pays_for_fast_ones_only_where_the_sum_counts() -> None:
    # A frame of a takes as long as ten of b.
    known = profile(
        {"a": ["s"], "b": ["s"]}, None, {"a": {1: 100.0}, "b": {1: 10.0, 8: 40.0}}, {"a": 10, "b": 150}, sla_ms=400.5
    )
    equal, most = (make_plan(known, 1, Policy(objective=objective)) for objective in ("max-min", "sum"))
    assert shares(known, equal.frames)[0] > 1.2 * shares(known, most.frames)[0]
    assert sum(most.frames.values()) > 1.2 * sum(equal.frames.values())


def busy(**fields: Mapping[str, object]) -> Profile:
    """Return a profile of three queries that together want 1.8 times the time that there is."""
    return with_queries(profile({name: ["s"] for name in "abc"}, None, 30.0, 20, sla_ms=400.5), **fields)


def test_a_minimum_rate_is_kept() -> None:
    plain = make_plan(busy(), 1).frames
    assert list(plain.values()) == pytest.approx([100 / 9] * 3, rel=0.01)
    found = make_plan(busy(a={"min_fps": 15.0}), 1).frames
    assert found["a"] >= 15 - 0.01
    assert found["b"] == pytest.approx(found["c"], rel=0.35)


def test_a_weight_moves_the_shares() -> None:
    found = make_plan(busy(a={"weight": 2.0}), 1).frames
    assert found["a"] / found["b"] == pytest.approx(2, rel=0.1)
    assert found["a"] / found["c"] == pytest.approx(2, rel=0.1)


def test_a_priority_comes_first() -> None:
    found = make_plan(busy(b={"priority": 3}), 1).frames
    plain = make_plan(busy(), 1).frames
    assert found["b"] > 1.4 * plain["b"]
    assert min(found.values()) > 0


def test_each_query_has_its_own_sla() -> None:
    # A cycle takes at least 200 ms; a has 50 ms to answer a frame, b has 400 ms.
    known = profile(
        {"a": ["A"], "b": ["B"]}, {"A": 90, "B": 90}, {"a": {1: 10.0, 4: 13.0}, "b": {1: 10.0, 4: 13.0}}, 20
    )
    known = with_queries(known, a={"sla_ms": 50.0}, b={"sla_ms": 400.0})
    found = make_plan(known, 90, Policy(QUIET, listed=True, objective="sum"))
    assert found.frames["b"] > 3 * found.frames["a"]


@pytest.mark.parametrize("objective", ["accuracy", "mean-accuracy"])
def test_accuracy_needs_staleness_curves(objective: ObjectiveName) -> None:
    known = with_queries(profile({"a": ["A"], "b": ["B"]}), a={"staleness": (0.5,)})
    with pytest.raises(InputError, match=f"objective {objective}: query b has no staleness curve"):
        make_plan(known, 2, Policy(objective=objective))


def test_a_query_whose_answers_keep_gets_less_where_accuracy_counts() -> None:
    still, moving = tuple([0.99] * 40), tuple(0.5**age for age in range(1, 40))
    known = with_queries(busy(), a={"staleness": still}, b={"staleness": moving}, c={"staleness": moving})
    frames = make_plan(known, 1, Policy(objective="accuracy"))
    assert frames.accuracy is not None
    assert frames.frames["a"] < 0.8 * frames.frames["b"]
    equal = make_plan(known, 1, Policy(objective="max-min"))
    assert equal.frames["a"] == pytest.approx(equal.frames["b"], rel=0.05)


@pytest.mark.parametrize("seed", range(4))
def test_accuracy_is_what_answers_of_a_simulated_run_are_worth(seed: int) -> None:
    known = scattered(seed, 4, 6, {1: 18, 2: 27, 4: 50})
    chance = random.Random(seed)
    curves = {
        name: {"staleness": tuple(chance.uniform(0.6, 0.95) ** age for age in range(1, 40))} for name in known.queries
    }
    known = with_queries(known, **curves)
    budget = between(known, (seed % 2) / 2)
    found = make_plan(known, budget, Policy(objective="accuracy"))
    assert found.accuracy is not None
    run = simulate(known, budget, found, 120.0)
    for query, expected in found.accuracy.items():
        assert standing_accuracy(known, query, run.queries[query], 20) == pytest.approx(expected, abs=0.08), query


@pytest.mark.parametrize("seed", range(7))
def test_a_plan_with_runs_during_waits_gives_what_it_says(seed: int) -> None:
    known = scattered(seed, 3 + seed, 5 + seed, {1: 9, 2: 13, 4: 21})
    budget = between(known, 0.5)
    found = make_plan(known, budget)
    assert found.rule.fill
    outcomes = simulate(known, budget, found, 120.0).queries
    timely = {query: (each.processed - each.late) / 120 for query, each in outcomes.items()}
    assert sum(timely.values()) == pytest.approx(sum(found.frames.values()), rel=0.05)
    assert shares(known, timely)[0] == pytest.approx(shares(known, found.frames)[0], rel=0.15)


def test_sixty_queries() -> None:
    known = scattered(0, 60, 80, {1: 5, 2: 8, 4: 13}, each=4)
    budget = known.budget("50%")
    found, listed = (make_plan(known, budget, Policy(listed=each)) for each in (False, True))
    assert {*found.order} == {*known.queries}
    assert shares(known, found.frames)[0] >= shares(known, listed.frames)[0] - 1e-4
    assert sum(found.frames.values()) > sum(listed.frames.values())


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_plan_of_many_queries_is_no_worse_than_their_listed_order(objective: ObjectiveName) -> None:
    known = scattered(5, 9, 9, {1: 12.0, 2: 17.0})
    known = with_queries(known, **{name: {"staleness": (0.9, 0.8, 0.7, 0.5)} for name in known.queries})
    budget = between(known, 0.5)
    found, listed = (make_plan(known, budget, Policy(listed=each, objective=objective)) for each in (False, True))
    if objective == "sum":
        assert sum(found.frames.values()) >= sum(listed.frames.values()) - 1e-5
    elif objective == "max-min":
        assert shares(known, found.frames)[0] >= shares(known, listed.frames)[0] - 1e-4
    else:
        assert found.accuracy is not None and listed.accuracy is not None
        worth = min if objective == "accuracy" else sum
        assert worth(found.accuracy.values()) >= worth(listed.accuracy.values()) - 1e-3


def test_a_policy_that_does_not_exist() -> None:
    check_policy("gemel")
    with pytest.raises(InputError, match="'fair' is not allowed: one of gemel, nexus"):
        check_policy("fair")


@pytest.mark.parametrize("objective", ["max-min", "sum", "accuracy"])
def test_accuracy_is_expected_under_every_objective(objective: ObjectiveName) -> None:
    curves = {name: {"model": name, "fps": 10.0, "staleness": [0.5]} for name in "ab"}
    known = profile({"a": ["a"], "b": ["b"]}, {"a": 60, "b": 60}, queries=curves)
    plan = make_plan(known, 60, Policy(objective=objective))
    assert plan.accuracy is not None
    for name, frames in plan.frames.items():
        assert plan.accuracy[name] == pytest.approx(frames / 10 + 0.5 * (1 - frames / 10), abs=0.01)
    without = {**known.queries, "b": known.queries["b"].model_copy(update={"staleness": None})}
    if objective != "accuracy":
        assert (
            make_plan(known.model_copy(update={"queries": without}), 60, Policy(objective=objective)).accuracy is None
        )
