"""Queries run together in one turn where that takes less time: on one stem, or on one model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from profiles import budgets, profiles

from gemel.bundles.goals import OBJECTIVES, ObjectiveName
from gemel.runtime.planning.joint_turns import find_joint_turns, turn_profile
from gemel.runtime.planning.planner import Policy, make_plan
from gemel.runtime.planning.profile import Profile, parse_profile
from gemel.runtime.planning.simulate import simulate


def stems(**changes: Any) -> Profile:
    """Return a profile of two queries of one feed whose models share a stem, which is most of their work.

    Args:
        changes: name of a query -> fields of it to change.
    """
    stem = {"id": "s", "run_ms": 8}
    models = {
        name: {"segments": ["stem", name], "run_ms": {1: 10, 2: 20}, "stem": stem} for name in ("people", "faces")
    }
    return parse_profile(
        {
            "link": {"bandwidth": 1e3},
            "segments": {"stem": {"bytes": 8}, "people": {"bytes": 2}, "faces": {"bytes": 2}},
            "models": models,
            "queries": {name: {"model": name, "fps": 60, "feed": "yard", **changes.get(name, {})} for name in models},
        }
    )


def cameras(
    count: int = 2, times: dict[int, float] | None = None, as_batch: Sequence[int] = (2, 4), **fields: Any
) -> Profile:
    """Return a profile of queries of one model on a feed each; by default, two frames take as long as one."""
    return parse_profile(
        {
            "segments": {"w": {"bytes": 5}},
            "models": {"people": {"segments": ["w"], "run_ms": times or {1: 20, 2: 20, 4: 40}, "as_batch": as_batch}},
            "queries": {
                f"q{index}": {"model": "people", "fps": 40, "feed": f"camera {index}"} for index in range(count)
            },
            **fields,
        }
    )


def test_queries_of_one_feed_whose_models_share_a_stem_run_together() -> None:
    assert find_joint_turns(stems(), 12) == {"people+faces": ("people", "faces")}


def test_a_joint_turn_runs_its_stem_once() -> None:
    turns = turn_profile(stems(), {"people+faces": ("people", "faces")}, "max-min")
    assert list(turns.queries) == ["people+faces"]
    assert turns.segments_of("people+faces") == ("stem", "people", "faces")
    assert (turns.run_ms("people+faces", 1), turns.run_ms("people+faces", 2)) == (12, 24)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"feed": "gate"}, id="another feed"),
        pytest.param({"feed": None}, id="a feed of its own"),
        pytest.param({"fps": 20}, id="another rate"),
        pytest.param({"weight": 2}, id="another weight"),
        pytest.param({"priority": 1}, id="another priority"),
        pytest.param({"staleness": [0.5]}, id="accuracy known of one only"),
    ],
)
def test_queries_that_differ_run_alone(change: dict[str, Any]) -> None:
    assert find_joint_turns(stems(faces=change), 12) == {}


def test_weights_that_do_not_fit_together_are_not_run_together() -> None:
    assert find_joint_turns(stems(), 11) == {}
    made = make_plan(stems(), 11)
    assert not made.joint and set(made.order) == {"people", "faces"}


def test_queries_of_one_model_run_together_if_larger_batches_are_faster() -> None:
    assert find_joint_turns(cameras(), 5) == {"q0+q1": ("q0", "q1")}
    turns = turn_profile(cameras(), {"q0+q1": ("q0", "q1")}, "max-min")
    assert dict(turns.models["q0+q1"].run_ms) == {1: 20, 2: 40}
    assert find_joint_turns(cameras(times={1: 20, 2: 40, 4: 80}), 5) == {}
    # Times that say so by chance: these frames run one by one.
    assert find_joint_turns(cameras(as_batch=()), 5) == {}


def test_queries_of_one_model_on_one_feed_run_it_once() -> None:
    known = cameras(3, times={1: 20, 2: 40, 4: 80})
    queries = {name: query.model_copy(update={"feed": "yard"}) for name, query in known.queries.items()}
    known = known.model_copy(update={"queries": queries | {"q2": known.queries["q2"]}})
    assert find_joint_turns(known, 5) == {"q0+q1": ("q0", "q1")}
    assert dict(turn_profile(known, {"q0+q1": ("q0", "q1")}, "sum").models["q0+q1"].run_ms) == {1: 20, 2: 40, 4: 80}
    known = known.model_copy(update={"models": cameras().models})
    assert find_joint_turns(known, 5) == {"q0+q1+q2": ("q0", "q1", "q2")}
    assert dict(turn_profile(known, {"all": ("q0", "q1", "q2")}, "sum").models["all"].run_ms) == {1: 20, 2: 40}


def test_no_more_queries_run_together_than_batches_were_measured_for() -> None:
    assert list(find_joint_turns(cameras(5), 5)) == ["q0+q1+q2+q3"]
    assert find_joint_turns(cameras(times={1: 20}), 5) == {}


def test_a_joint_turn_that_is_always_late_is_none() -> None:
    assert find_joint_turns(cameras(sla_ms=19), 5) == {}


def test_goals_of_a_joint_turn_are_the_strictest_of_its_queries() -> None:
    known = stems(people={"sla_ms": 50, "staleness": [0.9, 0.5]}, faces={"min_fps": 7, "staleness": [0.8]})
    joint = {"people+faces": ("people", "faces")}
    one = turn_profile(known, joint, "accuracy").queries["people+faces"]
    assert (one.sla_ms, one.min_fps, one.weight, one.feed, one.fps) == (50, 7, 1, "yard", 60)
    assert one.staleness == (0.8, 0.5)
    mean = turn_profile(known, joint, "mean-accuracy").queries["people+faces"]
    assert mean.staleness == pytest.approx((0.85, 0.65)) and mean.weight == 2


@pytest.mark.parametrize("known", [stems(), cameras()], ids=["stem", "model"])
@pytest.mark.parametrize("objective", ["max-min", "sum"])
def test_joint_turns_answer_more_frames(known: Profile, objective: ObjectiveName) -> None:
    budget = known.budget("all")
    made = make_plan(known, budget, Policy(objective=objective))
    assert list(made.joint) == list(made.order)
    assert made.frames.keys() == known.queries.keys()
    # One after the other, the frames of a second would take 1,200 ms (stem) or 1,600 ms (model).
    assert sum(made.frames.values()) > 0.95 * sum(query.fps for query in known.queries.values())


@settings(deadline=None, max_examples=25)
@given(profiles(most=4), st.sampled_from(OBJECTIVES), st.data())
def test_simulated_queries_get_what_plans_with_joint_turns_promise(
    known: Profile, objective: ObjectiveName, data: st.DataObject
) -> None:
    curve = {"staleness": (0.9, 0.6)}
    queries = {name: query.model_copy(update=curve) for name, query in known.queries.items()}
    known = known.model_copy(update={"queries": queries})
    budget = data.draw(budgets(known))
    made = make_plan(known, budget, Policy(objective=objective))
    found = simulate(known, budget, made, 5.0)
    assert found.peak <= budget
    for name, outcome in found.queries.items():
        assert outcome.frames == outcome.processed + outcome.skipped
        assert len(outcome.latencies) == outcome.processed
        assert 0 <= made.frames[name] <= known.queries[name].fps + 1e-6
