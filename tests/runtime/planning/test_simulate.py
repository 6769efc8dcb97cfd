"""Simulated runs account for every frame, and have the outcome that the plan predicts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from profiles import RULES, budgets, profile, profiles

from gemel.runtime.planning import conductor as module
from gemel.runtime.planning.planner import POLICIES, Plan, Policy, make_plan
from gemel.runtime.planning.profile import Profile, unmerged
from gemel.runtime.planning.residency import Rule, Step, steps
from gemel.runtime.planning.simulate import Simulation, simulate

QUIET = Policy(Rule(fill=False))


@st.composite
def cases(draw: st.DrawFn) -> tuple[Profile, int, Plan]:
    known = draw(profiles())
    budget = draw(budgets(known))
    rule = replace(draw(RULES), fill=draw(st.booleans()))
    order = draw(st.permutations(sorted(known.queries)))
    # Some queries have a second turn.
    order += draw(st.lists(st.sampled_from(order), max_size=2))
    sizes = {query: draw(st.sampled_from(known.batches(query))) for query in known.queries}
    return known, budget, Plan(tuple(order), sizes, rule, frozenset(), 0.0, 0.0, {})


def by_hand(order: str, rule: Rule, batch: int = 1) -> Plan:
    """Return a plan with an order, a rule and one turn size, and no predictions."""
    return Plan(tuple(order), dict.fromkeys(order, batch), rule, frozenset(), 0.0, 0.0, {})


def arrivals(found: Simulation, query: str) -> list[float]:
    """Return the arrival of each answered frame, if every turn took one frame."""
    outcome = found.queries[query]
    return [when - latency for (when, _), latency in zip(outcome.answers, outcome.latencies, strict=True)]


@settings(deadline=None, max_examples=40)
@given(cases(), st.integers(0, 3))
def test_every_frame_is_accounted_for(case: tuple[Profile, int, Plan], seed: int) -> None:
    known, budget, made = case
    found = simulate(known, budget, made, 5.0, seed)
    for query, outcome in found.queries.items():
        assert abs(outcome.frames - known.queries[query].fps * 5) <= 1
        assert outcome.skipped >= 0
        assert outcome.frames == outcome.processed + outcome.skipped
        assert len(outcome.latencies) == outcome.processed
        newest = [frame for _, frame in outcome.answers]
        # No frame twice: each answer is of newer frames.
        assert all(old < new for old, new in pairwise(newest))
        assert all(0 <= frame < outcome.frames for frame in newest)
        assert outcome.processed <= len(newest) * made.batches[query]
        assert outcome.processed <= (newest[-1] + 1 if newest else 0)
        assert all(when <= 5000 for when, _ in outcome.answers)
    assert found.processed == pytest.approx(
        sum(outcome.processed for outcome in found.queries.values())
        / max(1, sum(outcome.frames for outcome in found.queries.values()))
    )


@settings(deadline=None, max_examples=30)
@given(cases())
def test_no_frame_but_the_newest_is_answered_late(case: tuple[Profile, int, Plan]) -> None:
    known, budget, made = case
    found = simulate(known, budget, made, 5.0)
    for query, outcome in found.queries.items():
        assert outcome.late == sum(latency > known.sla_ms + 1e-6 for latency in outcome.latencies)
        assert outcome.late <= len(outcome.answers)
        run = known.run_ms(query, made.batches[query])
        assert all(latency >= known.run_ms(query, 1) - 1e-6 for latency in outcome.latencies)
        # The newest frame is never older than a period of its camera.
        if run + 1e3 / known.queries[query].fps <= known.sla_ms:
            assert outcome.late == 0
        if query in known.late():
            assert outcome.late == outcome.processed


@settings(deadline=None, max_examples=30)
@given(cases())
def test_memory_and_time_are_not_exceeded(case: tuple[Profile, int, Plan]) -> None:
    known, budget, made = case
    found = simulate(known, budget, made, 5.0)
    assert found.peak <= budget
    runs = max(known.run_ms(query, size) for query, size in made.batches.items())
    loads = max(sum(map(known.load_ms, known.segments_of(query))) for query in known.queries)
    # Runs and loads that began before the end count in full.
    assert found.busy_ms + found.blocked_ms <= 5000 + runs + loads + 1e-6
    assert found.loaded <= found.swaps * max(known.segments[segment].bytes for segment in known.segments)


def test_no_more_time_is_lost_than_there_is() -> None:
    # A load of a minute, in a run of a second.
    known = profile({"a": ["s"]}, {"s": 60_000})
    found = simulate(known, 60_000, make_plan(known, 60_000), 1.0)
    assert found.queries["a"].processed == 0
    # The first frame comes within 100 ms. Before that, there is nothing to lose.
    assert 900 <= found.blocked_ms < 1000


@settings(deadline=None, max_examples=10)
@given(cases(), st.integers(0, 3))
def test_the_same_run_for_the_same_seed(case: tuple[Profile, int, Plan], seed: int) -> None:
    assert simulate(*case, 3.0, seed) == simulate(*case, 3.0, seed)


def test_a_seed_sets_the_cameras_clocks() -> None:
    known = profile({"a": ["s"]})
    first, second = (arrivals(simulate(known, 1, make_plan(known, 1), 3.0, seed), "a")[-1] % 100 for seed in (0, 1))
    assert first != pytest.approx(second, abs=1)


def test_alone_on_a_device_a_frame_is_answered_after_a_run() -> None:
    known = profile({"a": ["s"]}, {"s": 5}, run=7)
    found = simulate(known, 5, make_plan(known, 5), 10.0)
    outcome = found.queries["a"]
    assert outcome.latencies[1:] == pytest.approx([7] * (outcome.processed - 1))
    assert [frame for _, frame in outcome.answers] == list(range(outcome.processed))
    assert outcome.skipped <= 1
    assert (found.swaps, found.loaded, found.peak, found.blocked_ms) == (1, 5, 5, 0)
    assert found.busy_ms == pytest.approx(7 * outcome.processed, abs=7)


def test_of_a_feed_that_is_faster_than_its_model_the_newest_frames_are_taken() -> None:
    known = profile({"a": ["s"]}, run=10, fps=1000, sla_ms=50)
    found = simulate(known, 1, make_plan(known, 1), 2.0)
    (outcome,) = found.queries.values()
    assert (outcome.frames, outcome.late) == (2000, 0)
    assert outcome.processed == pytest.approx(200, abs=2)
    assert max(outcome.latencies) <= 11


def test_nothing_is_lost_or_awaited_where_all_fits_and_there_is_time() -> None:
    known = profile({"a": ["S", "A"], "b": ["S", "B"], "c": ["C"]}, run=5, fps={"a": 10, "b": 7, "c": 13.3})
    found = simulate(known, 4, make_plan(known, 4), 60.0)
    assert (found.swaps, found.loaded, found.peak) == (4, 4, 4)
    assert found.blocked_ms <= 4
    for outcome in found.queries.values():
        # The last frame may still be running at the end.
        assert outcome.skipped <= 1
        assert outcome.late == 0


@settings(deadline=None, max_examples=12)
@given(st.data())
def test_as_many_frames_as_the_plan_says_where_there_are_always_enough(data: st.DataObject) -> None:
    known = data.draw(profiles(3, fps=5000)).model_copy(update={"sla_ms": 400.5})
    budget = data.draw(budgets(known))
    made = make_plan(known, budget, QUIET)
    found = simulate(known, budget, made, 20.0)
    for query, expected in made.frames.items():
        assert found.queries[query].processed / 20 == pytest.approx(expected, rel=0.08)
    assert found.blocked_ms / 20e3 == pytest.approx(made.blocked_ms / made.cycle_ms, abs=0.06)


def test_as_many_frames_as_the_plan_says_where_some_come_too_early() -> None:
    # Frames of the last 70.5 ms of each cycle of 169 ms are in time.
    known = profile({"a": ["A"], "b": ["B"]}, {"A": 40, "B": 69}, run=30, fps=9.7, sla_ms=100.5)
    made = make_plan(known, 69, replace(QUIET, listed=True))
    assert made.frames == pytest.approx(dict.fromkeys("ab", 9.7 * 70.5 / made.cycle_ms))
    runs = [simulate(known, 69, made, 120.0, seed) for seed in range(4)]
    for query, expected in made.frames.items():
        outcomes = [run.queries[query] for run in runs]
        assert all(outcome.late > 0 for outcome in outcomes)
        on_time = sum(outcome.processed - outcome.late for outcome in outcomes) / (4 * 120)
        assert on_time == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("budget", [3, 4, 5])
def test_as_many_frames_as_the_plan_says_where_cycles_differ(budget: int) -> None:
    known = profile({name: [name] for name in "abcdef"}, run=20.0, fps=500, link={"bandwidth": 10}, sla_ms=400.5)
    made = make_plan(known, budget, QUIET)
    found = simulate(known, budget, made, 60.0)
    processed = sum(outcome.processed for outcome in found.queries.values())
    assert processed / 60 == pytest.approx(sum(made.frames.values()), rel=0.03)


def feed(*fps: float) -> Profile:
    """Return a profile of queries of one feed, whose weights all fit."""
    queries = {f"q{index}": {"model": "a", "fps": each, "feed": "yard"} for index, each in enumerate(fps)}
    return profile({"a": ["s"]}, queries=queries)


def test_queries_of_one_feed_get_frames_at_the_same_moment() -> None:
    together = simulate(feed(10, 10), 1, make_plan(feed(10, 10), 1), 3.0)
    assert arrivals(together, "q0") == pytest.approx(arrivals(together, "q1"))
    alone = profile({"a": ["s"], "b": ["s"]})
    apart = simulate(alone, 1, make_plan(alone, 1), 3.0)
    assert abs(arrivals(apart, "a")[5] - arrivals(apart, "b")[5]) > 1


def test_a_query_that_takes_every_second_frame_of_a_feed_gets_it_when_the_others_do() -> None:
    known = feed(10, 5)
    found = simulate(known, 1, make_plan(known, 1), 3.0)
    moments = arrivals(found, "q0")
    assert all(min(abs(each - moment) for moment in moments) < 1e-6 for each in arrivals(found, "q1")[1:])


BUSY = {"a": ["A"], "b": ["B"], "c": ["C"]}


def test_who_can_run_runs_while_others_wait() -> None:
    known = profile(BUSY, {"A": 100, "B": 100}, run=2, fps={"a": 5, "b": 5, "c": 100}, sla_ms=400)
    filled = simulate(known, 101, by_hand("abc", Rule()), 20.0)
    plain = simulate(known, 101, by_hand("abc", Rule(fill=False)), 20.0)
    for query, outcome in plain.queries.items():
        assert filled.queries[query].processed >= outcome.processed
    assert filled.queries["c"].processed > 2 * plain.queries["c"].processed
    assert filled.blocked_ms < plain.blocked_ms
    # c delays neither a nor b.
    assert filled.swaps == plain.swaps


def test_frames_that_come_during_a_wait_need_not_wait_for_its_end() -> None:
    # A frame of c arrives every 10 ms, and for 200 of 206 ms a and b wait for their weights.
    known = profile(BUSY, {"A": 100, "B": 100}, run=2, fps={"a": 5, "b": 5, "c": 100}, sla_ms=400)
    found = simulate(known, 101, by_hand("abc", Rule()), 20.0)
    assert found.queries["c"].processed > 0.9 * found.queries["c"].frames


def late_weights(run: float | dict[str, dict[int, float]], fps: float) -> Profile:
    """Return a profile in which S loads for 100 ms beside a, then B for 50 ms; c needs S alone. 3 bytes are enough."""
    loads = {"A": (2, 1.0), "S": (1, 100.0), "B": (2, 50.0)}
    segments = {name: {"bytes": size, "load_ms": time} for name, (size, time) in loads.items()}
    return profile({"a": ["A"], "b": ["S", "B"], "c": ["S"]}, None, run, fps, sla_ms=1000, segments=segments)


def test_nobody_runs_on_weights_that_are_on_their_way() -> None:
    found = simulate(late_weights(1, 1000), 3, by_hand("abc", Rule()), 1.0)
    # a begins after 1 ms.
    assert found.queries["c"].answers[0][0] >= 102 - 1e-6


def test_who_runs_while_others_wait_holds_nobody_up() -> None:
    # When c starts, more frames are there than when c was chosen; a turn on all of them would delay b.
    known = late_weights({"a": {1: 1}, "b": {1: 1}, "c": {1: 5, 8: 60}}, 30)
    made = by_hand("abc", Rule(), batch=8)
    filled = simulate(known, 3, made, 1.0)
    plain = simulate(known, 3, replace(made, rule=Rule(fill=False)), 1.0)
    assert filled.queries["b"].answers[0] == plain.queries["b"].answers[0]


def test_time_passes_where_weights_come_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def counted(*arguments: Any) -> Iterator[Step]:
        for count, step in enumerate(steps(*arguments)):
            assert count < 10_000, "turns without end in a moment"
            yield step

    monkeypatch.setattr(module, "steps", counted)
    segments = {name: {"bytes": 1, "load_ms": 0} for name in "st"}
    known = profile({"a": ["s"], "b": ["t"]}, run=1, fps=2, segments=segments)
    found = simulate(known, 1, by_hand("ab", Rule(ahead="none", fill=False)), 5.0)
    assert all(outcome.skipped <= 1 for outcome in found.queries.values())


def shared_backbone(queries: Sequence[str]) -> Profile:
    """Return a profile of models that share nine tenths of their weights."""
    sizes = {"S": 90, **{name.upper(): 10 for name in queries}}
    return profile({name: ["S", name.upper()] for name in queries}, sizes, run=8, fps=15)


def test_sharing_is_worth_frames() -> None:
    merged = shared_backbone("abcd")
    apart = unmerged(merged)
    gemel = simulate(merged, 120, make_plan(merged, 120), 60.0)
    nexus = simulate(apart, 120, make_plan(apart, 120, POLICIES["nexus"]), 60.0)
    knowing = simulate(merged, 120, make_plan(merged, 120, POLICIES["nexus+shared"]), 60.0)
    assert {query: outcome.frames for query, outcome in gemel.queries.items()} == {
        query: outcome.frames for query, outcome in nexus.queries.items()
    }
    assert gemel.processed > 2 * nexus.processed
    assert gemel.processed >= knowing.processed > nexus.processed
    assert gemel.peak <= 120 and nexus.peak <= 120
    assert gemel.loaded / gemel.swaps < nexus.loaded / nexus.swaps
