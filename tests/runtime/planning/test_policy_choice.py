"""Choice of a policy and its objective: the workload's, the user's, or that of a baseline."""

from __future__ import annotations

import pytest
from profiles import profile

from gemel.errors import InputError
from gemel.runtime.planning.objectives import OBJECTIVES
from gemel.runtime.planning.planner import POLICIES, check_objective, make_plan, policy_of

KNOWN = profile({"a": ["x"], "b": ["y"]}, objective="sum")


def test_the_workload_says_the_objective_unless_the_user_does() -> None:
    assert policy_of("gemel", KNOWN).objective == "sum"
    assert policy_of("gemel", profile({"a": ["x"]})).objective == "max-min"
    for objective in OBJECTIVES:
        assert policy_of("gemel", KNOWN, objective).objective == objective
    assert policy_of("gemel", KNOWN).rule == POLICIES["gemel"].rule


def test_a_baseline_keeps_its_objective() -> None:
    assert policy_of("nexus", KNOWN) == POLICIES["nexus"]
    assert policy_of("nexus", KNOWN, "max-min") == POLICIES["nexus"]
    assert policy_of("lru", KNOWN, "sum") == POLICIES["lru"]


@pytest.mark.parametrize(
    ("policies", "objective", "message"),
    [
        (["gemel"], "fair", "--objective: 'fair' is not allowed: one of max-min, sum, accuracy, mean-accuracy"),
        (["gemel"], "", "--objective: '' is not allowed: one of max-min, sum, accuracy, mean-accuracy"),
        (["nexus"], "sum", "--objective: 'sum' is not allowed with --policy nexus: nexus serves max-min only"),
        (
            ["nexus", "lru"],
            "accuracy",
            "--objective: 'accuracy' is not allowed with --policy nexus, lru: nexus serves max-min, lru serves sum"
            " only",
        ),
    ],
)
def test_objectives_that_are_not_possible(policies: list[str], objective: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        check_objective(objective, policies)
    assert str(caught.value) == message
    with pytest.raises(InputError, match="--objective"):
        policy_of(policies[0], KNOWN, objective)


def test_one_policy_that_serves_the_objective_is_enough() -> None:
    check_objective("sum", ["gemel", "nexus"])
    check_objective("sum", ["nexus", "lru"])
    check_objective(None, ["nexus"])


@pytest.mark.parametrize("objective", ["accuracy", "mean-accuracy"])
def test_accuracy_without_a_staleness_curve(objective: str) -> None:
    with pytest.raises(InputError) as caught:
        make_plan(KNOWN, KNOWN.budget(), policy_of("gemel", KNOWN, objective))
    said = f"objective {objective}: query a has no staleness curve, which says how accurate an old answer is;"
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)
