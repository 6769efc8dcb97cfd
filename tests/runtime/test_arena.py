"""The arena never holds more than its budget, and never drops what is in use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gemel.errors import BackendError
from gemel.runtime.arena import HostArena
from gemel.runtime.manifest import SegmentSpec, TensorSpec

PAGE = 4096
SIZES = [PAGE, 3 * PAGE, 100, 2 * PAGE, 5 * PAGE]


def ident(index: int) -> str:
    """The id of the only tensor of a segment."""
    return f"{index:032x}"


def make(path: Path, budget: int | None = None) -> HostArena:
    """Segments ``s0`` ... of SIZES, filled with their index."""
    tensors, segments, data = {}, {}, bytearray()
    for index, size in enumerate(SIZES):
        offset = len(data)
        data += bytes([index]) * size + bytes(-size % PAGE)
        tensors[ident(index)] = TensorSpec(offset=offset, length=size, dtype="uint8", shape=(size,))
        segments[f"s{index}"] = SegmentSpec(models=("m",), offset=offset, length=size, tensors=(ident(index),))
    file = path / "blob"
    file.write_bytes(data)
    return HostArena(file, tensors, segments, budget)


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    budget=st.integers(0, sum(SIZES)),
    steps=st.lists(st.tuples(st.booleans(), st.sets(st.integers(0, len(SIZES) - 1), min_size=1)), max_size=30),
)
def test_budget_and_users(tmp_path: Path, budget: int, steps: list[tuple[bool, set[int]]]) -> None:
    arena = make(tmp_path, budget)
    held: list[list[str]] = []
    for acquire, members in steps:
        names = [f"s{index}" for index in sorted(members)]
        if acquire:
            busy = {name for group in held for name in group} | set(names)
            fits = sum(SIZES[int(name[1:])] for name in busy) <= budget
            if fits:
                arena.acquire(names)
                held.append(names)
            else:
                with pytest.raises(BackendError, match=f"the budget is {budget}"):
                    arena.acquire(names)
        elif held:
            arena.release(held.pop(0))
        assert arena.resident <= budget
        assert arena.stats.peak <= budget
        assert {name for group in held for name in group} <= set(arena.residents)
        for group in held:
            for name in group:
                assert (arena.tensor(ident(int(name[1:]))) == int(name[1:])).all()


def test_least_recently_used_goes_first(tmp_path: Path) -> None:
    arena = make(tmp_path, 5 * PAGE)
    for name in ("s0", "s1", "s0", "s3"):
        arena.acquire([name])
        arena.release([name])
    assert arena.residents == ("s0", "s3")


def test_counters(tmp_path: Path) -> None:
    arena = make(tmp_path)
    arena.acquire(["s0", "s1"])
    arena.acquire(["s1"])
    assert (arena.stats.loads, arena.stats.loaded) == (2, 4 * PAGE)
    arena.release(["s0", "s1"])
    arena.evict()
    assert arena.residents == ("s1",)  # the second acquire still holds it
    assert arena.stats.evicted == PAGE


def test_views_are_read_only_and_survive_eviction(tmp_path: Path) -> None:
    arena = make(tmp_path)
    view = arena.tensor(ident(2))
    arena.acquire(["s2"])
    arena.release(["s2"])
    arena.evict()
    np.testing.assert_array_equal(view, 2)
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 1
