"""Plans that are made beside a run: when they come, what is followed meanwhile, and what is made only once."""

from __future__ import annotations

from threading import Event, get_ident

import pytest
from profiles import profile

from gemel.runtime.loop import plans_in_background
from gemel.runtime.loop.plans_in_background import PlansInBackground
from gemel.runtime.planning.planner import Plan, Policy, make_plan
from gemel.runtime.planning.profile import Profile
from gemel.runtime.planning.review import Review

KNOWN = profile({name: [name.upper()] for name in "abc"})


class Planner:
    """A planner that waits for a sign before it makes a plan, and notes for which queries and on which thread."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go, self.made = Event(), Event()
        self.calls: list[str] = []
        self.threads: set[int] = set()
        self.error: Exception | None = None
        self.review = Review(KNOWN)
        monkeypatch.setattr(plans_in_background, "make_plan", self.make)
        self.plans = PlansInBackground(self.review, 2, Policy(), self.made.set)

    def make(self, known: Profile, budget: int, policy: Policy) -> Plan:
        assert self.go.wait(10)
        self.calls.append("".join(known.queries))
        self.threads.add(get_ident())
        if self.error is not None:
            raise self.error
        return make_plan(known, budget, policy)

    def ask(self, active: str, now: float) -> tuple[Profile, Plan] | None:
        return self.plans.revised(now, lambda: active, at_once=True)

    def wait_for(self, active: str, now: float) -> tuple[Profile, Plan]:
        """Ask for a plan, let it be made, and return it."""
        self.made.clear()
        found = self.ask(active, now)
        if found is None:
            assert self.made.wait(10)
            found = self.ask(active, now + 1)
        assert found is not None
        return found


@pytest.fixture
def planner(monkeypatch: pytest.MonkeyPatch) -> Planner:
    return Planner(monkeypatch)


def test_the_old_plan_is_followed_until_the_new_one_is_made(planner: Planner) -> None:
    assert [planner.ask("ab", now) for now in (10.0, 20.0, 5000.0)] == [None] * 3
    assert (tuple(planner.review.profile.queries), planner.review.replans) == (("a", "b", "c"), 0)
    planner.go.set()
    assert planner.made.wait(10)
    found = planner.ask("ab", 6000.0)
    assert found is not None and set(found[1].order) == {"a", "b"}
    assert (tuple(planner.review.profile.queries), planner.review.replans) == (("a", "b"), 1)
    assert planner.ask("ab", 6001.0) is None
    assert planner.threads != {get_ident()}


def test_it_is_made_once_while_the_run_asks_again_and_again(planner: Planner) -> None:
    for now in range(50):
        assert planner.ask("ab", float(now)) is None
    planner.go.set()
    assert planner.made.wait(10)
    assert planner.calls == ["ab"]


def test_a_query_that_comes_back_gets_its_former_plan_at_once(planner: Planner) -> None:
    planner.go.set()
    first = planner.wait_for("ab", 10.0)
    planner.wait_for("abc", 2000.0)
    assert planner.calls == ["ab", "abc"]
    assert planner.ask("ab", 4000.0) == first
    assert planner.calls == ["ab", "abc"]


def test_what_changed_meanwhile_is_planned_for_next(planner: Planner) -> None:
    assert planner.ask("ab", 10.0) is None
    planner.go.set()
    assert planner.made.wait(10)
    # By now, only c has frames; the plan for a and b is followed until there is one for c.
    found = planner.ask("c", 2000.0)
    assert found is not None and set(found[1].order) == {"a", "b"}
    assert planner.wait_for("c", 3000.0)[1].order == ("c",)


def test_nothing_is_planned_where_the_plan_fits_or_nobody_has_frames(planner: Planner) -> None:
    assert planner.ask("abc", 10.0) is None
    assert planner.ask("", 2000.0) is None
    planner.go.set()
    assert not planner.made.wait(0.1)


def test_no_review_before_it_is_due(planner: Planner) -> None:
    assert planner.ask("abc", 100.0) is None
    planner.go.set()
    assert planner.plans.revised(200.0, lambda: "ab", at_once=False) is None
    assert not planner.made.wait(0.1)
    assert planner.plans.revised(1200.0, lambda: "ab", at_once=False) is None
    assert planner.made.wait(10)


def test_a_failure_reaches_the_run(planner: Planner) -> None:
    planner.error = ValueError("no plan")
    planner.go.set()
    assert planner.ask("ab", 10.0) is None
    assert planner.made.wait(10)
    with pytest.raises(ValueError, match="no plan"):
        planner.ask("ab", 20.0)
