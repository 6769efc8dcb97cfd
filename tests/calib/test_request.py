"""A model gets the highest precision that one of its queries asks for, and targets give accuracy floors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from helpers import query

from gemel.calib.record import Calibration
from gemel.calib.request import PrecisionSettings, accuracy_floor, precisions_of
from gemel.workload import Workload


@pytest.mark.parametrize(
    ("default", "own", "other", "wanted"),
    [
        ("int8", None, None, "int8"),
        ("int8", None, "fp16", "fp16"),
        ("int8", "fp16", None, "fp16"),
        ("int8", "fp32", None, "fp32"),
        ("fp32", "int8", None, "fp32"),
        ("fp32", "int8", "int8", "int8"),
        ("fp32", "int8", "fp16", "fp16"),
        ("fp16", "int8", "fp32", "fp32"),
    ],
)
def test_of_two_queries_of_a_model_the_more_exacting_wins(
    workload_in: Callable[..., Workload], default: Any, own: str | None, other: str | None, wanted: str
) -> None:
    queries = [
        query("a", precision=own),
        {**query("a", precision=other), "name": "again"},
        query("b", precision="int8"),
    ]
    assert precisions_of(workload_in(*queries), default) == {"a": wanted, "b": "int8"}


@pytest.mark.parametrize(
    ("target", "merged", "floor"),
    [
        (0.5, {}, 0.99),
        (1.0, {}, 1.0),
        (0.95, {"a": 0.96}, 0.99),
        (0.95, {"a": 0.953}, 0.95 / 0.953),
        (0.95, {"a": 0.9}, 1),
        (0.95, {"a": 0.0}, 1),
        (0.95, {"b": 0.953}, 0.99),
    ],
)
def test_a_query_keeps_its_target_of_the_unmerged_model_and_99_percent_in_any_case(
    workload_in: Callable[..., Workload], target: float, merged: dict[str, float], floor: float
) -> None:
    (asked,) = workload_in(query("a", target=target)).queries
    assert accuracy_floor(asked, 1, merged) == pytest.approx(floor)
    assert accuracy_floor(asked, 0.8, merged) == pytest.approx(0.8 * floor)


def test_an_earlier_calibration_can_be_reused_if_its_ranges_are_by_the_same_method() -> None:
    earlier = Calibration(method="min-max", models={}, kept={}, queries={})
    assert PrecisionSettings("int8", "min-max", earlier=earlier).reusable is earlier
    assert PrecisionSettings("int8", "percentile", earlier=earlier).reusable is None
    assert PrecisionSettings("int8").reusable is None
