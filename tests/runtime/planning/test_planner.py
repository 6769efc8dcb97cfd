"""Plans are compared with every order and every choice of turn sizes, computed in the plainest way."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice, permutations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from profiles import RULES, budgets, profile, profiles

from gemel.runtime.planning.planner import POLICIES, Plan, Policy, make_plan
from gemel.runtime.planning.profile import Profile, QueryProfile, unmerged
from gemel.runtime.planning.residency import Rule, Step, steps


def repeated(known: Profile, budget: int, order: Sequence[str], rule: Rule) -> list[list[Step]]:
    """Return the first cycle that equals the one before it; many cycles, if they alternate."""
    found = steps(known, budget, order, rule)
    cycles = [list(islice(found, len(order)))]
    while len(cycles) < 80:
        cycles.append(list(islice(found, len(order))))
        if cycles[-1] == cycles[-2]:
            return cycles[-1:]
    return cycles[20:]


def cost(
    known: Profile, cycles: Sequence[Sequence[Step]], sizes: Mapping[str, int]
) -> tuple[float, float, dict[str, float]]:
    """Return the milliseconds of an average cycle and of its waits, and the frames a second of each query."""
    runs = {query: known.run_ms(query, size) for query, size in sizes.items()}
    blocked = 0.0
    for cycle in cycles:
        for last, step in zip([cycle[-1], *cycle], cycle, strict=False):
            blocked += max(0.0, sum(map(known.load_ms, step.ahead.load)) - runs[last.query]) / len(cycles)
            blocked += sum(map(known.load_ms, step.then.load)) / len(cycles)
    time = sum(runs.values()) + blocked
    frames = {}
    for query, size in sizes.items():
        since = time if runs[query] > known.sla_ms else min(time, known.sla_ms - runs[query])
        frames[query] = min(size, known.queries[query].fps * since / 1e3) / time * 1e3
    return time, blocked, frames


def choices(known: Profile) -> Iterator[dict[str, int]]:
    """Yield every combination of turn sizes that the queries may have."""
    options = []
    for query in known.queries.values():
        times = known.models[query.model].run_ms
        options.append([batch for batch, time in times.items() if time <= known.sla_ms] or [1])
    for sizes in product(*options):
        yield dict(zip(known.queries, sizes, strict=True))


def most_frames(known: Profile, budget: int, orders: Iterator[tuple[str, ...]], rule: Rule) -> float:
    return max(
        sum(cost(known, cycles, sizes)[2].values())
        for cycles in (repeated(known, budget, order, rule) for order in orders)
        for sizes in choices(known)
    )


def slowest(known: Profile, frames: Mapping[str, float]) -> float:
    """Return the smallest share of its frames that a query gets answered in time."""
    return min(frames[query] / spec.fps for query, spec in known.queries.items())


@st.composite
def cases(draw: st.DrawFn, most: int = 5, widest: int = 3) -> tuple[Profile, int]:
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


@settings(deadline=None, max_examples=15)
@given(cases(widest=2), RULES)
def test_no_order_and_no_batch_sizes_lose_fewer_frames(case: tuple[Profile, int], rule: Rule) -> None:
    known, budget = case
    found = make_plan(known, budget, Policy(rule))
    best = most_frames(known, budget, permutations(known.queries), rule)
    assert sum(found.frames.values()) == pytest.approx(best, abs=1e-5)


@pytest.mark.parametrize(
    ("seed", "count", "run"),
    [(1, 6, {1: 8, 4: 20}), (3, 7, {1: 8, 4: 20}), *((seed, 7, {1: 8}) for seed in (2, 4, 5, 6))],
)
def test_the_best_plan_of_six_or_seven_queries(seed: int, count: int, run: dict[int, float]) -> None:
    known = scattered(seed, count, 9, run)
    budget = known.budget("70%")
    names = list(known.queries)
    # A cycle has no beginning, so the first query stays first.
    orders = ((names[0], *rest) for rest in permutations(names[1:]))
    best = most_frames(known, budget, orders, Rule())
    found = make_plan(known, budget)
    assert sum(found.frames.values()) == pytest.approx(best, abs=1e-5)
    assert best > sum(make_plan(known, budget, Policy(listed=True)).frames.values()) + 1


@pytest.mark.parametrize("fair", [False, True])
def test_the_best_plan_where_models_run_many_batch_sizes(fair: bool) -> None:
    firsts, more = {"a": 15, "b": 35, "c": 40, "d": 15}, {"a": 12, "b": 18, "c": 18, "d": 2}
    run = {name: {size: first + more[name] * (size - 1.0) for size in range(1, 13)} for name, first in firsts.items()}
    fps = {"a": 10.0, "b": 20.0, "c": 15.0, "d": 30.0}
    known = profile({name: ["s"] for name in "abcd"}, None, run, fps, sla_ms=400.5)
    cycles = repeated(known, 1, "abcd", Rule())
    outcomes = [cost(known, cycles, sizes)[2] for sizes in choices(known)]
    found = make_plan(known, 1, Policy(fair=fair))
    if fair:
        assert slowest(known, found.frames) == pytest.approx(max(slowest(known, each) for each in outcomes), abs=1e-3)
    else:
        assert sum(found.frames.values()) == pytest.approx(max(sum(each.values()) for each in outcomes), abs=1e-5)


@settings(deadline=None, max_examples=40)
@given(cases(4), st.sampled_from(sorted(POLICIES)))
def test_a_plan_says_what_it_costs(case: tuple[Profile, int], policy: str) -> None:
    known, budget = case
    found = make_plan(known, budget, POLICIES[policy])
    assert sorted(found.order) == sorted(known.queries)
    assert found.batches in choices(known)
    rule = POLICIES[policy].rule
    assert found.rule in (rule, replace(rule, ahead="none")) if POLICIES[policy].lazy else found.rule == rule
    cycles = repeated(known, budget, found.order, found.rule)
    time, blocked, frames = cost(known, cycles, found.batches)
    assert found.cycle_ms == pytest.approx(time)
    assert found.blocked_ms == pytest.approx(blocked)
    assert found.frames == pytest.approx(frames)
    for query, spec in known.queries.items():
        assert 0 <= found.frames[query] <= spec.fps * (1 + 1e-9)


@settings(deadline=None, max_examples=25)
@given(cases())
def test_batch_sizes_of_a_fair_plan_are_the_best_for_the_slowest_query(case: tuple[Profile, int]) -> None:
    known, budget = case
    policy = POLICIES["nexus"]
    found = make_plan(known, budget, policy)
    # Without room for one more model, prefetching one evicts others: a lazy policy may be better.
    rules = (policy.rule, replace(policy.rule, ahead="none"))
    every = [repeated(known, budget, found.order, rule) for rule in rules]
    best = max(slowest(known, cost(known, cycles, sizes)[2]) for sizes in choices(known) for cycles in every)
    assert slowest(known, found.frames) == pytest.approx(best, abs=1e-3)


def test_fair_batch_sizes_for_many_queries() -> None:
    # A larger turn of one query makes the others slower; only if all turns grow, all queries gain.
    names = [f"q{index}" for index in range(16)]
    run = {key: {1: 10.0, 2: 11.0, 4: 12.0} for key in names}
    known = profile({name: ["s"] for name in names}, None, run, 30, sla_ms=400.5)
    found = make_plan(known, 1, Policy(listed=True, fair=True))
    assert slowest(known, found.frames) == pytest.approx(4 / (16 * 12) * 1e3 / 30)


def test_fair_batch_sizes_for_queries_of_different_rates() -> None:
    fps = dict(zip("abcdefg", (20.0, 60.0, 15.0, 10.0, 60.0, 15.0, 10.0), strict=True))
    first = dict(zip(fps, (50, 10, 45, 50, 30, 50, 40), strict=True))
    each = dict(zip(fps, (4, 2, 6, 10, 2, 6, 11), strict=True))
    run = {name: {size: first[name] + each[name] * (size - 1.0) for size in (1, 2, 4, 8, 16)} for name in fps}
    known = profile({name: ["s"] for name in fps}, None, run, fps, sla_ms=400.5)
    good = dict(zip(fps, (8, 16, 4, 4, 16, 4, 4), strict=True))
    expected = slowest(known, cost(known, repeated(known, 1, "abcdefg", Rule()), good)[2])
    found = make_plan(known, 1, Policy(listed=True, fair=True))
    assert slowest(known, found.frames) >= expected - 1e-3


@settings(deadline=None, max_examples=20)
@given(cases(4), RULES)
def test_a_free_hand_loses_no_more_than_a_listed_order_or_fair_batches(case: tuple[Profile, int], rule: Rule) -> None:
    known, budget = case
    best = sum(make_plan(known, budget, Policy(rule)).frames.values())
    for policy in (Policy(rule, listed=True), Policy(rule, fair=True), Policy(rule, listed=True, fair=True)):
        assert best >= sum(make_plan(known, budget, policy).frames.values()) - 1e-5


@settings(deadline=None, max_examples=10)
@given(cases(4), st.sampled_from(sorted(POLICIES)))
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
    assert found.cycle_ms == sum(known.run_ms(query, size) for query, size in found.batches.items())
    assert found.pinned == {segment for query in known.queries for segment in known.segments_of(query)}


def test_a_budget_for_one_model_pins_nothing_but_what_all_share() -> None:
    known = profile({"a": ["S", "A"], "b": ["S", "B"], "c": ["S", "C"]})
    assert make_plan(known, 2).pinned == {"S"}
    assert make_plan(unmerged(known), 2).pinned == frozenset()


def dropped(known: Profile, budget: int, found: Plan) -> set[str]:
    """Return the segments that are evicted in the cycles that repeat."""
    cycles = repeated(known, budget, found.order, found.rule)
    return {segment for cycle in cycles for turn in cycle for part in (turn.ahead, turn.then) for segment in part.evict}


@settings(deadline=None, max_examples=20)
@given(cases(4))
def test_what_is_pinned_is_never_dropped(case: tuple[Profile, int]) -> None:
    found = make_plan(*case)
    assert not dropped(*case, found) & found.pinned


@pytest.mark.parametrize(("models", "budget"), [(5, 3), (5, 4), (6, 3), (6, 4), (6, 5)])
def test_what_is_pinned_is_never_dropped_though_cycles_differ(models: int, budget: int) -> None:
    # If not all of several equal models fit, one cycle loads other models than the next.
    known = profile({f"q{index}": [f"s{index}"] for index in range(models)})
    found = make_plan(known, budget)
    assert not dropped(known, budget, found) & found.pinned


@pytest.mark.parametrize(("models", "budget"), [(5, 3), (5, 4), (6, 3), (6, 4), (6, 5)])
def test_a_cycle_takes_what_it_takes_on_average(models: int, budget: int) -> None:
    known = profile({f"q{index}": [f"s{index}"] for index in range(models)}, run=1.0, link={"bandwidth": 10})
    found = make_plan(known, budget)
    time, blocked, _ = cost(known, repeated(known, budget, found.order, found.rule), found.batches)
    assert [found.cycle_ms, found.blocked_ms] == pytest.approx([time, blocked])


def test_queries_that_share_are_neighbours() -> None:
    known = profile({"a": ["S", "A"], "b": ["T", "B"], "c": ["S", "C"], "d": ["T", "D"]}, {"S": 90, "T": 90})
    found = make_plan(known, 92)
    assert found.order in [("a", "c", "b", "d"), ("a", "c", "d", "b"), ("a", "b", "d", "c"), ("a", "d", "b", "c")]


def reordered(known: Profile) -> Iterator[dict[str, QueryProfile]]:
    """Yield the queries in every order."""
    for names in permutations(known.queries):
        yield {name: known.queries[name] for name in names}


def test_of_plans_that_lose_as_few_frames_the_one_that_is_done_sooner() -> None:
    known = profile({"a": ["S"]}, None, {"a": {1: 20, 2: 10, 4: 40}}, 5)
    found = make_plan(known, 1)
    assert (found.batches, found.cycle_ms) == ({"a": 2}, 10)
    assert found.frames["a"] == pytest.approx(5)
    known = profile({"a": ["S", "A"], "b": ["T", "B"], "c": ["S", "C"], "d": ["T", "D"]}, {"S": 9, "T": 9}, 1.0, 1)
    alone = [
        make_plan(known.model_copy(update={"queries": queries}), 11, Policy(listed=True))
        for queries in reordered(known)
    ]
    assert [sum(each.frames.values()) for each in alone] == pytest.approx([4] * len(alone))
    assert len({each.cycle_ms for each in alone}) > 1
    assert make_plan(known, 11).cycle_ms == min(each.cycle_ms for each in alone)


def test_a_query_that_is_always_late_has_a_turn() -> None:
    known = profile({"a": ["A"], "b": ["B"]}, None, {"a": {1: 150, 2: 160}, "b": {1: 10, 2: 12}}, 10)
    assert known.late() == ("a",)
    for policy in POLICIES.values():
        found = make_plan(known, 2, policy)
        assert found.batches["a"] == 1
        assert found.frames["a"] == pytest.approx(1e3 / found.cycle_ms)


def test_a_batch_that_leaves_no_time_to_wait_is_no_gain() -> None:
    # A turn of two frames takes all of the SLA: only frames that arrive as the turn begins are answered in time.
    known = profile({"a": ["A"]}, None, {"a": {1: 90, 2: 100}}, 100, sla_ms=100)
    found = make_plan(known, 1)
    assert found.batches == {"a": 1}
    assert found.frames["a"] == pytest.approx(1 / 90 * 1e3)


def test_sixty_queries() -> None:
    known = scattered(0, 60, 80, {1: 5, 2: 8, 4: 13}, each=4)
    budget = known.budget("50%")
    found = make_plan(known, budget)
    assert sorted(found.order) == sorted(known.queries)
    assert sum(found.frames.values()) > 1.1 * sum(make_plan(known, budget, Policy(listed=True)).frames.values())


@pytest.mark.parametrize("seed", range(12))
def test_the_plan_of_many_queries_is_no_worse_than_their_listed_order(seed: int) -> None:
    known = scattered(seed, 8, 8, {1: 10.0 + seed}, each=2 + seed % 3)
    budget = (known.budget("min") + known.budget("all")) // 2
    listed = make_plan(known, budget, Policy(listed=True))
    assert sum(make_plan(known, budget).frames.values()) >= sum(listed.frames.values()) - 1e-6
