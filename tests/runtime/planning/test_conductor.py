"""A plan is followed, in a world of virtual time in which a test says when frames come."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from profiles import RULES, budgets, profile, profiles

from gemel.runtime.planning.conductor import Conductor, Link
from gemel.runtime.planning.planner import Plan, Policy, make_plan
from gemel.runtime.planning.profile import Profile
from gemel.runtime.planning.residency import Rule, Transfer


class Stage:
    """A world that notes what is asked of it, and asserts that only possible things are asked.

    Args:
        known: the profile.
        frames: query -> times at which its frames come.
        end: time at which the world is over.
        late: segment -> time at which it is in memory, if that is later than expected.
    """

    def __init__(
        self, known: Profile, frames: Mapping[str, Sequence[float]], end: float, late: Mapping[str, float] | None = None
    ) -> None:
        self.now = 0.0
        self.done: list[str] = []
        """Events: ``+A`` (a load), ``-A`` (an eviction), ``a2`` (a turn of two frames), ``planned``."""
        self.answered: list[tuple[float, str, float]] = []
        """(time of the answer, query, arrival of the frame)."""
        self.waits: list[tuple[float, float]] = []
        """(begin of the wait, time to wait for)."""
        self.next_profile: Callable[[float], Profile | None] = lambda now: None
        self._profile, self._end, self._late = known, end, late or {}
        self._budget = 3
        self._link = Link()
        self._frames = {query: sorted(when) for query, when in frames.items()}
        self._taken_in = -math.inf
        """When frames were taken in last; later ones are not seen."""

    @property
    def over(self) -> bool:
        return self.now >= self._end

    def take_in(self) -> None:
        self._taken_in = self.now

    def transfer(self, transfer: Transfer) -> None:
        self.done += [f"-{segment}" for segment in transfer.evict] + [f"+{segment}" for segment in transfer.load]
        self._link.transfer(self._profile, transfer, self.now)

    def kept(self) -> Sequence[str]:
        return self._link.kept

    def due(self, query: str) -> float:
        segments = self._profile.segments_of(query)
        return max(self._link.due(segments), *(self._late.get(segment, 0.0) for segment in segments))

    def fresh(self, query: str, most: int, oldest: float) -> list[float]:
        there = self._there(query)
        return [when for when in there[-most:] if when >= oldest or when == there[-1]]

    def process(self, query: str, count: int) -> None:
        assert self.due(query) <= self.now
        there = self._there(query)
        assert 0 < count <= len(there)
        self._frames[query] = self._frames[query][len(there) :]
        self.now += self._profile.run_ms(query, count)
        self.done.append(f"{query}{count}")
        self.answered += [(self.now, query, when) for when in there[-count:]]

    def wait(self, until: float) -> None:
        assert until > self.now and len(self.waits) < 10_000
        self.waits.append((self.now, until))
        frames = min((when for each in self._frames.values() for when in each if when > self.now), default=math.inf)
        self.now = min(until, frames, self._link.coming(self.now), self._end)

    def _there(self, query: str) -> list[float]:
        return [when for when in self._frames.get(query, []) if when <= self._taken_in]

    def revised(self) -> tuple[Profile, Plan] | None:
        if (found := self.next_profile(self.now)) is None:
            return None
        self._profile = found
        self.done.append("planned")
        return found, make_plan(found, self._budget)


def lead(stage: Stage, known: Profile, order: str, rule: Rule, budget: int = 2, batch: int = 1) -> Conductor:
    made = Plan(tuple(order), dict.fromkeys(order, batch), rule, frozenset(), 0.0, 0.0, {})
    conductor = Conductor(known, budget, stage, made)
    conductor.run()
    return conductor


ALL = {"a": ["A"], "b": ["B"], "c": ["C"]}
EVERY_MS = [float(when) for when in range(1000)]


def test_turns_follow_the_plan_and_the_next_one_loads_meanwhile() -> None:
    known = profile(ALL, run=10)
    stage = Stage(known, dict.fromkeys("abc", EVERY_MS), 41)
    lead(stage, known, "cab", Rule())
    # With 2 bytes, the weights of the next turn are asked for before a run begins.
    assert stage.done[:9] == ["+C", "+A", "c1", "-C", "+B", "a1", "-A", "+C", "b1"]
    assert stage.waits == [(0, 1)]


def test_nothing_is_loaded_ahead_where_the_rule_says_so() -> None:
    known = profile(ALL, run=10)
    stage = Stage(known, dict.fromkeys("abc", EVERY_MS), 33.5)
    conductor = lead(stage, known, "abc", Rule("least-recent", ahead="none", fill=False))
    assert stage.done == ["+A", "a1", "+B", "b1", "-A", "+C", "c1", "-B", "+A"]
    assert conductor.blocked_ms == 3.5
    assert [until for _, until in stage.waits] == [1, 12, 23, 34]


def test_time_in_which_weights_are_awaited_counts() -> None:
    known = profile(ALL, {"A": 7, "B": 5}, run=10)
    conductor = lead(Stage(known, {"a": [0.0], "b": [0.0]}, 30), known, "ab", Rule(fill=False), 12)
    # The weights of b are loaded while a runs.
    assert conductor.blocked_ms == 7


@pytest.mark.parametrize("fill", [False, True])
def test_time_before_the_first_frame_is_not_lost_to_weights(fill: bool) -> None:
    known = profile(ALL, {"A": 7, "B": 50}, run=10)
    conductor = lead(Stage(known, {"a": [3.0], "b": [3.0]}, 80), known, "ab", Rule(fill=fill), 57)
    # The weights of a come at 7, those of b at 57, while a runs until 17.
    assert conductor.blocked_ms == 4 + 40


def test_a_pause_of_the_process_brings_no_weights() -> None:
    """The clock goes on by more than a wait between two questions of the conductor, as on a busy machine."""

    class Busy(Stage):
        def due(self, query: str) -> float:
            due = super().due(query)
            if due <= self.now:
                return due
            asked, self.now = self.now, self.now + 5
            return asked + 1

        def wait(self, until: float) -> None:
            if until > self.now:
                super().wait(until)

    known = profile(ALL, run=10)
    stage = Busy(known, {"a": [0.0]}, 90, {"A": 50.0})
    lead(stage, known, "a", Rule())
    # No run begins before the weights are there.
    assert stage.done == ["+A", "a1"]
    assert stage.answered[0][0] >= 60


def test_it_ends_while_weights_are_awaited() -> None:
    known = profile(ALL, {"A": 100}, run=10)
    stage = Stage(known, {"a": [0.0]}, 50)
    assert lead(stage, known, "a", Rule(), 100).blocked_ms == 50
    assert stage.done == ["+A"]


def test_weights_that_come_late_are_awaited() -> None:
    known = profile(ALL, run=10)
    stage = Stage(known, {"a": [0.0]}, 200, late={"A": 77})
    lead(stage, known, "a", Rule())
    assert stage.answered == [(87, "a", 0)]


def test_a_query_without_frames_is_passed_over() -> None:
    known = profile(ALL, run=10)
    stage = Stage(known, {"a": EVERY_MS, "c": EVERY_MS}, 100)
    lead(stage, known, "abc", Rule(), 3)
    assert [query for _, query, _ in stage.answered][:6] == list("acacac")


@pytest.mark.parametrize("rule", [Rule(), Rule("recent", whole=True), Rule("least-recent", ahead="none", fill=False)])
def test_while_nobody_has_frames_nothing_comes_or_goes(rule: Rule) -> None:
    known = profile(ALL, run=10)
    stage = Stage(known, {"a": [0.0, 5000.0], "b": [9000.0]}, 20_000)
    lead(stage, known, "abc", rule)
    assert [(query, frame) for _, query, frame in stage.answered] == [("a", 0), ("a", 5000), ("b", 9000)]
    # At most one cycle for each frame, and one load at the end.
    assert sum(each.startswith("+") for each in stage.done) <= 4 * 3 + 1
    assert len(stage.waits) <= 4 * (3 + 2)
    assert all(latency <= 3 * 11 for when, _, frame in stage.answered if (latency := when - frame) > 0)


def test_frames_that_would_be_answered_too_late_are_left_out() -> None:
    known = profile({"a": ["A"]}, run={"a": {1: 10, 4: 40}}, sla_ms=100)
    stage = Stage(known, {"a": [0.0, 30.0, 61.0, 120.0]}, 1000, late={"A": 120})
    lead(stage, known, "a", Rule(), batch=4)
    # At 120 ms, a turn of 40 ms can answer frames of the last 60 ms in time.
    assert [frame for _, _, frame in stage.answered] == [61, 120]


class TestWhileOthersWait:
    def stage(self, frames: Mapping[str, Sequence[float]], rule: Rule, batch: int = 1) -> Stage:
        """Lead a stage on which B takes 50 ms to load, C is small, and turns of c are short."""
        run = {"a": {1: 10.0}, "b": {1: 10.0}, "c": {1: 4.0, 2: 8.0, 4: 16.0}}
        known = profile(ALL, {"B": 50}, run, sla_ms=1000)
        stage = Stage(known, {"b": [0.0], **frames}, 70)
        lead(stage, known, "cb", rule, 51, batch)
        return stage

    def test_those_run_whose_weights_are_there(self) -> None:
        stage = self.stage({"c": EVERY_MS}, Rule())
        assert stage.done[:4] == ["+C", "+B", "c1", "c1"]
        # From 1 ms on c runs 12 times: the 13th would end at 53 ms, and B is there at 51 ms.
        assert [query for _, query, _ in stage.answered][:13] == ["c"] * 12 + ["b"]
        assert stage.answered[12][0] == 61

    def test_but_not_by_rules_that_forbid_it(self) -> None:
        stage = self.stage({"c": EVERY_MS}, Rule(fill=False))
        assert [query for _, query, _ in stage.answered][:2] == ["c", "b"]

    def test_on_fewer_frames_where_that_is_in_time(self) -> None:
        stage = self.stage({"c": [0.0, 43.0, 44.0, 45.0, 46.0]}, Rule(), batch=4)
        runs = [(when, frame) for when, query, frame in stage.answered if query == "c"]
        # At 43 ms there is one frame, which runs. At 47 ms there are three; the newest can be answered by 51 ms.
        assert runs[1:] == [(47, 43), (51, 46)]
        assert stage.answered[3][:2] == (61, "b")

    def test_the_one_that_ran_longest_ago(self) -> None:
        known = profile({**ALL, "d": ["D"]}, {"B": 50}, run=4, sla_ms=1000)
        # While a runs from 20 ms on, frames of c and then of d come; d ran before c did.
        stage = Stage(known, {"a": [0.0, 20.0], "c": [0.0, 21.0], "d": [0.0, 22.0], "b": [0.0]}, 70)
        lead(stage, known, "dcab", Rule(), 53)
        assert [query for _, query, frame in stage.answered if frame > 0] == ["a", "d", "c"]

    def test_no_query_keeps_the_time_to_itself(self) -> None:
        known = profile({**ALL, "d": ["D"]}, {"B": 50}, run=4, sla_ms=1000)
        stage = Stage(known, {"a": EVERY_MS, "c": EVERY_MS, "d": EVERY_MS, "b": [0.0]}, 70)
        lead(stage, known, "acdb", Rule(), 53)
        runs = [query for _, query, _ in stage.answered]
        assert runs[: runs.index("b")] == list("acd" * 5)[: runs.index("b")]
        assert runs.index("b") >= 11


class TestAnotherProfile:
    def test_its_plan_is_followed_and_what_it_needs_stays_in_memory(self) -> None:
        known = profile(ALL, run=10)
        less = known.model_copy(update={"queries": {name: known.queries[name] for name in "ac"}})
        stage = Stage(known, dict.fromkeys("abc", EVERY_MS), 200)
        coming = [less]
        stage.next_profile = lambda now: coming.pop() if now > 40 and coming else None
        conductor = lead(stage, known, "abc", Rule(), 3)
        assert stage.done.count("planned") == 1
        after = stage.done[stage.done.index("planned") + 1 :]
        assert [key for key, _ in groupby(sorted(each[0] for each in after if each[0].isalpha()))] == ["a", "c"]
        assert sorted(each for each in after if each[0] in "+-") == ["-B"]
        assert set(conductor.plan.order) == {"a", "c"}

    def test_what_it_needs_and_was_not_loaded_is_loaded(self) -> None:
        known = profile(ALL, run=10)
        only = {name: known.model_copy(update={"queries": {name: known.queries[name]}}) for name in "ab"}
        stage = Stage(only["a"], dict.fromkeys("ab", EVERY_MS), 100)
        coming = [only["b"]]
        stage.next_profile = lambda now: coming.pop() if now > 40 and coming else None
        lead(stage, only["a"], "a", Rule(), 1)
        assert [each for each in stage.done if each[0] in "+-"] == ["+A", "-A", "+B"]

    def test_it_is_asked_for_while_nobody_has_frames(self) -> None:
        known = profile(ALL, run=10)
        only = {name: known.model_copy(update={"queries": {name: known.queries[name]}}) for name in "ab"}
        # Only b has a frame, and b is not in the plan.
        stage = Stage(only["a"], {"b": [500.0]}, 2000)
        coming = [only["b"]]
        stage.next_profile = lambda now: coming.pop() if now >= 500 and coming else None
        lead(stage, only["a"], "a", Rule())
        assert [frame for _, _, frame in stage.answered] == [500]


class TestLink:
    known = profile({"a": ["A", "B"], "c": ["C"]}, {"A": 5, "B": 20, "C": 7})

    def test_segments_come_one_after_the_other(self) -> None:
        link = Link()
        link.transfer(self.known, Transfer((), ("A", "B")), 100)
        link.transfer(self.known, Transfer((), ("C",)), 101)
        assert [link.due([name]) for name in "ABC"] == [105, 125, 132]
        assert link.due("AB") == 125
        assert [link.coming(now) for now in (0, 105, 131, 132)] == [105, 125, 132, math.inf]

    def test_it_is_free_again_when_all_have_come(self) -> None:
        link = Link()
        link.transfer(self.known, Transfer((), ("A",)), 0)
        link.transfer(self.known, Transfer((), ("C",)), 50)
        assert link.due("C") == 57

    def test_what_is_not_there_and_not_coming_is_never_there(self) -> None:
        link = Link()
        assert (link.due([]), link.due("A")) == (0, math.inf)
        link.transfer(self.known, Transfer((), ("A", "B")), 0)
        link.transfer(self.known, Transfer(("A",), ("C",)), 30)
        assert (link.due("AB"), link.due("BC")) == (math.inf, 37)
        link.clear()
        assert link.due("B") == math.inf


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_only_what_is_in_memory_runs_and_the_newest_frame_is_never_forgotten(data: st.DataObject) -> None:
    known = data.draw(profiles(4))
    budget = data.draw(budgets(known))
    frames = {query: data.draw(st.lists(st.integers(0, 3000), max_size=12, unique=True)) for query in known.queries}
    stage = Stage(known, frames, 100_000)
    rule = data.draw(RULES)
    Conductor(known, budget, stage, make_plan(known, budget, Policy(rule, listed=True))).run()
    for query, when in frames.items():
        answered = [frame for _, each, frame in stage.answered if each == query]
        assert answered == sorted(set(answered))
        assert answered[-1:] == sorted(when)[-1:]
