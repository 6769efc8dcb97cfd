"""Runs that are compared take turns."""

from __future__ import annotations

from gemel.runtime.ort.copy_times import cpu_times


def test_times_are_medians_of_runs_in_turn() -> None:
    order: list[str] = []
    times = cpu_times([lambda: order.append("a"), lambda: order.append("b")])
    assert order == ["a", "b"] * 18
    assert len(times) == 2
    assert all(0 <= time < 1 for time in times)
