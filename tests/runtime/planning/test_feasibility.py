"""Minimum rates that a plan misses: what is said, and that each change that is said to be enough is enough."""

from __future__ import annotations

import re
from typing import Any

import pytest
from profiles import profile

from gemel.runtime.planning import feasibility
from gemel.runtime.planning.feasibility import find_shortage
from gemel.runtime.planning.planner import Plan, Policy, make_plan
from gemel.runtime.planning.profile import Profile
from gemel.runtime.planning.promises import Promise, promises

LISTED = Policy(listed=True)
"""Policy whose plans are made in milliseconds."""
_MORE = re.compile(r"([\d.]+) (MB|bytes) more memory")
_LONGER = re.compile(r"an SLA of ([\d.]+) ms for (.+)")
_TIMES = re.compile(r"an SLA ([\d.]+) times as long for all queries")
_LOWER = re.compile(r"([\d.]+) for (\w+)")


def asked(known: Profile, **changes: dict[str, Any]) -> Profile:
    """Return a profile with other goals of some queries: query -> field -> value."""
    queries = {name: query.model_copy(update=changes.get(name)) for name, query in known.queries.items()}
    return known.model_copy(update={"queries": queries})


def three(fps: float = 10.0) -> Profile:
    """Return a profile of three queries, whose models take 50 bytes each, loaded in 50 ms, and 10 ms for a frame."""
    return profile({"a": ["x"], "b": ["y"], "c": ["z"]}, dict.fromkeys("xyz", 50), fps=fps)


def with_change(known: Profile, budget: int, change: str) -> tuple[Profile, int]:
    """Return the profile and budget after a change that is given in words."""
    if match := _MORE.fullmatch(change):
        return known, budget + round(float(match[1]) * (1e6 if match[2] == "MB" else 1))
    if match := _TIMES.fullmatch(change):
        longer = {name: {"sla_ms": known.sla_of(name) * float(match[1])} for name in known.queries}
        return asked(known, **longer), budget
    if match := _LONGER.fullmatch(change):
        names = known.queries if match[2] == "all queries" else re.split(", | and ", match[2])
        return asked(known, **{name: {"sla_ms": float(match[1])} for name in names}), budget
    if change.startswith("min_fps of "):
        rates = {name: {"min_fps": float(rate)} for rate, name in _LOWER.findall(change)}
        assert rates
        return asked(known, **rates), budget
    out = change.removeprefix("leaving out ")
    assert out in known.queries
    return known.model_copy(update={"queries": {n: q for n, q in known.queries.items() if n != out}}), budget


def reached(known: Profile, plan: Plan) -> bool:
    """Return whether a plan reaches all minimum rates, but for a thousandth of the feeds' rates."""
    return all(each.fps >= each.min_fps - 1.001e-3 * each.feed_fps for each in promises(known, plan).values())


CASES = {
    "one query of three": (asked(three(), a={"min_fps": 9.0}), 60),
    "two queries of three": (asked(three(), a={"min_fps": 9.0}, b={"min_fps": 8.0}), 60),
    "all queries": (asked(three(), **{name: {"min_fps": 9.0} for name in "abc"}), 60),
    "a query of low priority": (asked(three(), a={"priority": 1, "min_fps": 9.9}, b={"min_fps": 9.0}), 100),
    "an SLA that is too short for both to take turns": (
        asked(
            profile(
                {"a": ["x"], "b": ["y"]},
                {"x": 100, "y": 100},
                run={name: {1: 10, 2: 12, 4: 14, 8: 16} for name in "ab"},
                fps=20,
                sla_ms=100,
            ),
            a={"min_fps": 12.0},
            b={"min_fps": 12.0, "sla_ms": 90.0},
        ),
        100,
    ),
    "megabytes": (
        asked(
            profile(
                {"a": ["x"], "b": ["y"]}, {"x": 5_000_000, "y": 5_000_000}, link={"bandwidth": 5e7, "latency_ms": 0}
            ),
            a={"min_fps": 9.0},
            b={"min_fps": 9.0},
        ),
        5_000_000,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_each_change_is_enough(case: str) -> None:
    known, budget = CASES[case]
    plan = make_plan(known, budget, LISTED)
    shortage = find_shortage(known, budget, LISTED, plan)
    assert shortage is not None and shortage.changes
    found = promises(known, plan)
    assert shortage.missing == {name: each for name, each in found.items() if each.fps < each.min_fps - 0.01}
    for change in shortage.changes:
        changed, more = with_change(known, budget, change)
        assert reached(changed, make_plan(changed, more, LISTED)), change
        assert change in str(shortage)
    assert "\n" not in str(shortage)


def test_changes_of_every_kind_are_found() -> None:
    kinds = ("more memory", "an SLA ", "min_fps of", "leaving out")
    said = [str(find_shortage(*known, LISTED, make_plan(*known, LISTED))) for known in CASES.values()]
    for kind in kinds:
        assert any(kind in line for line in said), kind


def test_no_more_memory_than_is_needed() -> None:
    known = asked(three(), a={"min_fps": 5.5})
    shortage = find_shortage(known, 60, LISTED, make_plan(known, 60, LISTED))
    assert shortage is not None
    (more,) = [int(match[1]) for change in shortage.changes if (match := _MORE.fullmatch(change))]
    # Two models in memory, 100 bytes, are enough. The range of 90 bytes is halved five times.
    assert 40 <= more <= 40 + 90 / 32


def test_what_more_memory_and_time_cannot_give() -> None:
    known = asked(profile({"a": ["x"]}, {"x": 50}, run=200, sla_ms=400), a={"min_fps": 9.0})
    shortage = find_shortage(known, 50, LISTED, make_plan(known, 50, LISTED))
    assert shortage is not None
    # A frame takes 200 ms, and there is no other query to leave out.
    assert str(shortage) == (
        "min_fps is not reached: a gets 5 of 9 frames per second; enough would be min_fps of 5 for a"
    )


def test_nothing_is_said_and_searched_where_all_rates_are_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feasibility, "make_plan", None)
    for known in (three(), asked(three(), a={"min_fps": 5.0})):
        assert find_shortage(known, 100, LISTED, make_plan(known, 100, LISTED)) is None


@pytest.mark.parametrize("rate", [9.0, 30.0])
def test_few_plans_are_made(monkeypatch: pytest.MonkeyPatch, rate: float) -> None:
    """Check the number of plans for many queries, with and without rates that more memory makes possible."""
    made = 0

    def counted(known: Profile, budget: int, policy: Policy | None = None) -> Plan:
        nonlocal made
        made += 1
        return make_plan(known, budget, policy)

    names = [f"q{number}" for number in range(12)]
    known = profile({name: [name] for name in names}, dict.fromkeys(names, 50), run=5.0, fps=30)
    known = asked(known, **{name: {"min_fps": rate} for name in names})
    plan = make_plan(known, 100, LISTED)
    monkeypatch.setattr(feasibility, "make_plan", counted)
    shortage = find_shortage(known, 100, LISTED, plan)
    assert shortage is not None and len(shortage.missing) > 1
    assert 0 < made <= 19


def test_where_no_change_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    known, budget = CASES["one query of three"]
    plan = make_plan(known, budget, LISTED)
    nothing = Plan(plan.order, plan.batches, plan.rule, plan.pinned, 1.0, 1.0, dict.fromkeys("abc", -1.0))
    monkeypatch.setattr(feasibility, "make_plan", lambda *_: nothing)
    shortage = find_shortage(known, budget, LISTED, plan)
    assert shortage is not None and shortage.changes == ()
    assert str(shortage).endswith("of 9 frames per second; no single change was found that is enough")


def test_promises_stand_beside_what_was_asked() -> None:
    curve = {"staleness": (0.9, 0.8)}
    known = asked(three(), a={**curve, "min_fps": 9.0}, b=curve, c=curve)
    plan = make_plan(known, 150, Policy(listed=True, objective="accuracy"))
    found = promises(known, plan)
    assert found["a"].to_json() == {
        "fps": pytest.approx(plan.frames["a"], abs=1e-3),
        "feed_fps": 10.0,
        "min_fps": 9.0,
        "accuracy": pytest.approx((plan.accuracy or {})["a"], abs=1e-4),
    }
    assert Promise(7.5, 10.0, 0.0).to_json() == {"fps": 7.5, "feed_fps": 10.0, "min_fps": 0.0, "accuracy": None}
