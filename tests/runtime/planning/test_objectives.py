"""Which of several plans is better, by each objective, and how accurate old answers are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from profiles import profile
from slow_plans import sum_of_ages

from gemel.errors import InputError
from gemel.runtime.planning.objectives import OBJECTIVES, ObjectiveName, Worth, kept_accuracy
from gemel.runtime.planning.profile import Profile, QueryProfile, parse_profile


def queries(*each: dict[str, object]) -> Profile:
    """Return a profile of queries q0, q1, ... with these fields, at 10 frames a second where they say nothing."""
    specs = {f"q{index}": {"model": "m", "fps": 10.0, **fields} for index, fields in enumerate(each)}
    return profile({"m": ["s"]}, queries=specs)


def best(
    known: Profile,
    objective: ObjectiveName,
    frames: Sequence[Sequence[float]],
    accuracy: Sequence[Sequence[float]] | None = None,
    cycle_ms: Sequence[float] | None = None,
) -> int:
    """Return the index of the plan that is the best by the objective."""
    worth = Worth(known, tuple(known.queries), objective)
    values = None if accuracy is None else np.array(accuracy, float)
    cycles = np.array(cycle_ms or [100.0] * len(frames))
    return worth.best(worth.rows(np.array(frames, float), values, cycles))


PLAIN = queries({}, {}, {})


def test_the_lowest_share_decides_first_then_the_next() -> None:
    assert best(PLAIN, "max-min", [[10, 10, 2], [3, 3, 3]]) == 1
    assert best(PLAIN, "max-min", [[3, 4, 9], [3, 5, 5]]) == 1
    assert best(PLAIN, "max-min", [[3, 5, 9], [9, 3, 5.5]]) == 1
    # A share counts, not frames: 4 of 40 frames are fewer than 2 of 10.
    assert best(queries({}, {"fps": 40}), "max-min", [[10, 4], [2, 9]]) == 1


def test_in_the_sum_no_query_counts_more_than_another() -> None:
    assert best(PLAIN, "sum", [[10, 10, 2], [3, 3, 3]]) == 0
    assert best(PLAIN, "sum", [[10, 0, 0], [4, 4, 3]]) == 1


def test_accuracy_is_what_counts_where_the_objective_says_so() -> None:
    frames, accuracy = [[9, 9, 9], [1, 1, 1]], [[0.9, 0.9, 0.2], [0.3, 0.3, 0.3]]
    assert best(PLAIN, "accuracy", frames, accuracy) == 1
    assert best(PLAIN, "mean-accuracy", frames, accuracy) == 0
    assert best(PLAIN, "max-min", frames, accuracy) == 0


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_of_equal_plans_the_shortest_cycle_wins(objective: ObjectiveName) -> None:
    frames = [[5, 5, 5]] * 3
    assert best(PLAIN, objective, frames, [[0.5] * 3] * 3, [30, 20, 25]) == 1


def test_of_plans_whose_shares_are_equal_to_the_step_more_frames_win() -> None:
    assert best(PLAIN, "max-min", [[5.0000001, 5, 5], [5, 5.0004, 5.0004]]) == 1


def test_of_equal_rows_the_first() -> None:
    assert best(PLAIN, "max-min", [[1, 1, 1], [5, 5, 5], [5, 5, 5]]) == 1


def test_a_weight_is_a_multiple_of_the_share() -> None:
    known = queries({"weight": 2.0}, {})
    # The first query is to get twice the share of the second.
    assert best(known, "max-min", [[4, 4], [6, 3]]) == 1
    assert best(known, "max-min", [[8, 2], [6, 3]]) == 1
    assert best(known, "accuracy", [[1, 1], [1, 1]], [[0.4, 0.4], [0.6, 0.3]]) == 1
    assert best(known, "sum", [[4, 5], [5, 3.5]]) == 1
    assert best(known, "mean-accuracy", [[1, 1], [1, 1]], [[0.4, 0.5], [0.5, 0.35]]) == 1


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_minimum_rates_come_before_the_objective(objective: ObjectiveName) -> None:
    known = queries({"min_fps": 6.0}, {}, {})
    frames, accuracy = [[5, 9, 9], [6, 1, 1]], [[0.9, 0.9, 0.9], [0.7, 0.1, 0.1]]
    assert best(known, objective, frames, accuracy) == 1
    # More than the minimum counts as any other frame does.
    assert best(known, objective, [[6, 9, 9], [9, 1, 1]], [[0.7, 0.9, 0.9], [0.9, 0.1, 0.1]]) == 0


def test_where_minimum_rates_cannot_all_be_had_as_little_as_possible_is_missing() -> None:
    known = queries({"min_fps": 8.0}, {"min_fps": 8.0, "fps": 20.0})
    # 2 of 10 frames are missing, or 2 of 20.
    assert best(known, "sum", [[6, 20], [8, 6]]) == 1


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_higher_priority_decides_first(objective: ObjectiveName) -> None:
    known = queries({}, {"priority": 1}, {"priority": 1})
    accuracy = [[0.9, 0.4, 0.4], [0.1, 0.5, 0.5]]
    assert best(known, objective, [[9, 4, 4], [1, 5, 5]], accuracy) == 1
    # The lower one decides among plans that are equal for the higher one.
    assert best(known, objective, [[1, 5, 5], [2, 5, 5]], [[0.1, 0.5, 0.5], [0.2, 0.5, 0.5]]) == 1


def test_a_priority_comes_before_minimum_rates_of_others() -> None:
    known = queries({"min_fps": 5.0}, {"priority": 1})
    assert best(known, "max-min", [[5, 3], [0, 4]]) == 1


VALUES = st.lists(st.integers(0, 100), min_size=3, max_size=3)


@settings(deadline=None, max_examples=100)
@given(st.lists(VALUES, min_size=1, max_size=6), st.sampled_from(OBJECTIVES))
def test_the_best_by_plain_comparison(plans: list[list[int]], objective: ObjectiveName) -> None:
    frames = [[each / 10 for each in plan] for plan in plans]
    accuracy = [[each / 100 for each in plan] for plan in plans]
    found = best(PLAIN, objective, frames, accuracy)
    ranks = [sorted(plan) if objective in ("max-min", "accuracy") else [sum(plan)] for plan in plans]
    # Equal plans in another order of queries have as many frames, and their cycles are equal: the first wins.
    keys = [(rank, sum(plan)) for rank, plan in zip(ranks, plans, strict=True)]
    assert found == keys.index(max(keys))


@settings(deadline=None, max_examples=50)
@given(VALUES, st.integers(0, 2), st.integers(1, 20), st.booleans())
def test_more_for_any_query_is_smoothly_better(plan: list[int], place: int, more: int, accurate: bool) -> None:
    worth = Worth(PLAIN, tuple(PLAIN.queries), "accuracy" if accurate else "max-min")
    values = np.array([plan, plan], float) / 10 + 0.1
    values[1, place] += more / 10
    low, high = worth.smooth(values, values / 20)[:, 0]
    assert high > low


def test_the_poorest_query_gains_most_smoothly() -> None:
    worth = Worth(PLAIN, tuple(PLAIN.queries), "max-min")
    plain, poor, rich = worth.smooth(np.array([[2.0, 5, 8], [3, 5, 8], [2, 5, 9]]), None)[:, 0]
    assert poor - plain > rich - plain > 0
    assert [Worth(PLAIN, ("q0",), each).is_steep for each in OBJECTIVES] == [True, False, True, False]


def test_minimum_rates_and_priorities_come_first_smoothly_too() -> None:
    known = queries({"min_fps": 6.0}, {})
    worth = Worth(known, tuple(known.queries), "max-min")
    lacking, enough = worth.smooth(np.array([[5.0, 9.0], [6.0, 1.0]]), None).tolist()
    assert enough > lacking
    known = queries({}, {"priority": 1})
    worth = Worth(known, tuple(known.queries), "max-min")
    lower, higher = worth.smooth(np.array([[9.0, 4.0], [1.0, 5.0]]), None).tolist()
    assert higher > lower


CURVES = st.lists(st.floats(0, 1), min_size=1, max_size=12)


@settings(deadline=None, max_examples=60)
@given(CURVES, st.integers(0, 30))
def test_accuracies_of_old_answers_add_up(curve: list[float], most: int) -> None:
    found = kept_accuracy(QueryProfile(model="m", fps=1.0, staleness=tuple(curve)), most)
    assert found.tolist() == pytest.approx([sum_of_ages(curve, missed) for missed in range(most + 1)])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"min_fps": 11.0}, "min_fps 11 is more than the 10 frames per second"),
        ({"min_fps": -1.0}, "min_fps"),
        ({"weight": 0.0}, "weight"),
        ({"weight": -1.0}, "weight"),
        ({"sla_ms": 0.0}, "sla_ms"),
        ({"staleness": []}, "staleness"),
        ({"staleness": [1.2]}, "staleness"),
        ({"staleness": [-0.1]}, "staleness"),
        ({"priority": "high"}, "priority"),
    ],
)
def test_what_a_query_may_not_ask_for(fields: dict[str, object], said: str) -> None:
    document = queries({}).model_dump()
    document["queries"]["q0"].update(fields)
    with pytest.raises(InputError, match=said):
        parse_profile(document)
