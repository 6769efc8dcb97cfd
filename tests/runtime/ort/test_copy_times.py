"""Runs that are compared take turns."""

from __future__ import annotations

from pathlib import Path

from gemel.bundles.reader import open_bundle
from gemel.runtime.ort.bake import bake
from gemel.runtime.ort.copy_times import cpu_times, open_bound


def test_times_are_medians_of_runs_in_turn() -> None:
    order: list[str] = []
    times = cpu_times([lambda: order.append("a"), lambda: order.append("b")])
    assert order == ["a", "b"] * 18
    assert len(times) == 2
    assert all(0 <= time < 1 for time in times)


def test_a_timed_session_takes_nothing_from_the_arena_that_stays(bundle: Path) -> None:
    baked = bake(open_bundle(bundle))
    options = open_bound(baked, next(iter(baked.models)), "main").session.get_session_options()
    assert options.get_session_config_entry("session.use_env_allocators") == "0"
