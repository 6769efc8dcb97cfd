"""The search for a plan: always the same, and better where repeated turns or more orders help."""

from __future__ import annotations

import random

import pytest
from profiles import profile

from gemel.runtime.planning.objectives import OBJECTIVES, ObjectiveName
from gemel.runtime.planning.profile import Profile
from gemel.runtime.planning.residency import Rule
from gemel.runtime.planning.search import best_of_orders, search_plan

QUIET = Rule(fill=False)


def workload(seed: int, count: int) -> tuple[Profile, int]:
    """Return a profile of models that share segments, and a budget in bytes for some of them."""
    chance = random.Random(seed)
    names = [f"s{index}" for index in range(count + 2)]
    models = {f"q{index}": chance.sample(names, 2) for index in range(count)}
    fps = {name: float(chance.choice((5, 10, 15, 30))) for name in models}
    run = {name: {1: (first := chance.uniform(4, 25)), 2: first + 6, 4: first + 15} for name in models}
    known = profile(models, {name: chance.randint(5, 60) for name in names}, run, fps, sla_ms=400.5)
    curve = {"staleness": tuple(0.9**age for age in range(1, 40))}
    known = known.model_copy(
        update={"queries": {key: spec.model_copy(update=curve) for key, spec in known.queries.items()}}
    )
    return known, (known.budget("min") + known.budget("all")) // 2


@pytest.mark.parametrize("count", [1, 5, 8])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_equal_arguments_give_equal_plans(count: int, objective: ObjectiveName) -> None:
    first, second = (search_plan(*workload(3, count), Rule(), objective) for _ in range(2))
    assert (first.order, first.sizes.tolist(), first.rule) == (second.order, second.sizes.tolist(), second.rule)
    assert first.row == second.row


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(("count", "seed"), [(3, 0), (3, 1), (9, 0)])
def test_it_is_never_worse_than_the_listed_order(seed: int, objective: ObjectiveName, count: int) -> None:
    known, budget = workload(seed, count)
    queries = tuple(known.queries)
    listed = best_of_orders(known, budget, [queries], [Rule()], objective)
    assert search_plan(known, budget, Rule(), objective).row >= listed.row


def test_every_query_keeps_a_turn() -> None:
    for count in (2, 5, 8, 14):
        known, budget = workload(1, count)
        order = search_plan(known, budget, Rule(), "max-min").order
        assert {*order} == {*known.queries}
        assert max(map(order.count, order)) <= 4


def test_turns_are_repeated_where_that_helps() -> None:
    # The weights of a stay in memory; a gets more if it runs between others that load for a long time.
    known = profile(
        {name: [name.upper()] for name in "abcd"},
        {"A": 1, "B": 60, "C": 60, "D": 60},
        10,
        {"a": 25, "b": 5, "c": 5, "d": 5},
        sla_ms=100.5,
    )
    once = best_of_orders(known, 61, [("a", "b", "c", "d"), ("a", "b", "d", "c")], [QUIET], "max-min")
    found = search_plan(known, 61, QUIET, "max-min")
    assert found.order.count("a") > 1
    assert found.row > once.row
    assert found.outcome.frames[0, 0] > 1.5 * once.outcome.frames[0, 0]


def test_turns_are_not_repeated_where_that_costs_others() -> None:
    known = profile({name: ["s"] for name in "abc"}, None, 30, 20, sla_ms=400.5)
    found = search_plan(known, 1, Rule(), "max-min")
    assert len({found.order.count(query) for query in "abc"}) == 1


def test_prefetch_for_several_turns_is_tried() -> None:
    # D takes long to load: longer than one turn, but not longer than those of a, b and c.
    known = profile({name: [name.upper()] for name in "abcde"}, {"D": 80, "E": 80}, 30, 10, sla_ms=400.5)
    near, far = (
        best_of_orders(known, 163, [tuple("abdce")], [rule], "sum") for rule in (QUIET, Rule(fill=False, far=True))
    )
    found = search_plan(known, 163, QUIET, "sum")
    assert found.row >= max(near.row, far.row)


def test_rules_that_forbid_it_are_kept() -> None:
    known, budget = workload(2, 4)
    for rule in (Rule(ahead="none"), Rule("recent", whole=True, ahead="all", fill=False)):
        assert search_plan(known, budget, rule, "sum").rule == rule


def test_all_turn_sizes_are_tried_for_the_best_orders() -> None:
    # Three sizes of six queries are too many to try for every order.
    known, budget = workload(4, 6)
    found = search_plan(known, budget, Rule(), "max-min")
    again = best_of_orders(known, budget, [found.order], [found.rule], "max-min")
    assert found.row >= again.row
