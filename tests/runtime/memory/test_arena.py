"""Tests of the arena, on the host: the budget is never exceeded, and no segment in use is evicted."""

from __future__ import annotations

import os
from pathlib import Path
from threading import Event, Timer

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gemel.bundles.blob import HUGE_PAGE, footprint
from gemel.bundles.manifest import SegmentSpec, TensorSpec
from gemel.errors import BackendError
from gemel.runtime.memory.host_arena import HostArena
from gemel.runtime.memory.loading import Loading

PAGE = 4096
SIZES = [PAGE, 3 * PAGE, 100, 2 * PAGE, 5 * PAGE]


def ident(index: int) -> str:
    """Return the id of a segment's only tensor."""
    return f"{index:032x}"


def make(path: Path, budget: int | None = None, *, cold: bool = False) -> HostArena:
    """Write segments ``s0``, ``s1``, ... of SIZES bytes, filled with their index, and open an arena on them."""
    tensors, segments, data = {}, {}, bytearray()
    for index, size in enumerate(SIZES):
        offset = len(data)
        data += bytes([index]) * size + bytes(-size % PAGE + PAGE)
        tensors[ident(index)] = TensorSpec(offset=offset, length=size, dtype="uint8", shape=(size,))
        segments[f"s{index}"] = SegmentSpec(models=("m",), offset=offset, length=size, tensors=(ident(index),))
    file = path / "blob"
    file.write_bytes(data)
    return HostArena(file, tensors, segments, budget, Loading(cold))


SOME = st.sets(st.integers(0, len(SIZES) - 1), min_size=1)


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    budget=st.integers(0, sum(map(footprint, SIZES))),
    steps=st.lists(st.tuples(st.sampled_from(["acquire", "release", "prefetch"]), SOME, SOME), max_size=30),
)
def test_budget_and_users(tmp_path: Path, budget: int, steps: list[tuple[str, set[int], set[int]]]) -> None:
    arena = make(tmp_path, budget)
    held: list[list[str]] = []
    for what, members, others in steps:
        names, others_ = ([f"s{index}" for index in sorted(each)] for each in (members, others - members))
        if what == "acquire":
            busy = {name for group in held for name in group} | set(names)
            fits = sum(footprint(SIZES[int(name[1:])]) for name in busy) <= budget
            if fits:
                arena.acquire(names)
                held.append(names)
            else:
                with pytest.raises(BackendError, match=f"the budget is {budget}"):
                    arena.acquire(names)
        elif what == "prefetch":
            before = arena.residents
            try:
                arena.prefetch(names, evict=others_)
            except BackendError:
                assert arena.residents == before
            else:
                assert set(names) <= set(arena.residents)
                assert not set(others_) & set(arena.residents)
        elif held:
            arena.release(held.pop(0))
        assert arena.resident <= budget
        assert arena.stats.peak <= budget
        assert {name for group in held for name in group} <= set(arena.residents)
        for group in held:
            for name in group:
                assert (arena.tensor(ident(int(name[1:]))) == int(name[1:])).all()
    arena.close()


def test_loading_ahead_holds_nobody_up_and_who_needs_it_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arena, go, done = make(tmp_path, 4 * PAGE), Event(), []

    def load(segment: str) -> None:
        assert go.wait(10)
        done.append(("load", segment))

    monkeypatch.setattr(arena, "_load", load)
    monkeypatch.setattr(arena, "_drop", lambda segment: done.append(("drop", segment)))
    told = Event()
    arena.prefetch(["s1"], done=told.set)
    assert not arena.loaded(["s1"]) and not arena.loaded(["s0"]) and arena.loaded([])
    assert (arena.residents, done) == (("s1",), [])
    # A later request waits for an earlier one; otherwise the segments of both would be in memory.
    arena.prefetch(["s0"], evict=["s1"])
    Timer(0.05, go.set).start()
    arena.acquire(["s3"])
    assert done == [("load", "s1"), ("drop", "s1"), ("load", "s0"), ("load", "s3")]
    assert arena.stats.blocked_s > 0
    assert told.wait(10) and arena.loaded(["s0", "s3"]) and not arena.loaded(["s1"])
    arena.close()


def test_nobody_waits_for_the_rest_of_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arena, begun, go, told, load = make(tmp_path), Event(), Event(), Event(), HostArena._load

    def halting(segment: str) -> None:
        if segment == "s1":
            begun.set()
            assert go.wait(10)
        load(arena, segment)

    monkeypatch.setattr(arena, "_load", halting)
    arena.prefetch(["s0", "s1", "s2"], done=told.set)
    # The loader is at s1 now, and does not go on before it is told to.
    assert begun.wait(10)
    assert arena.loaded(["s0"])
    arena.acquire(["s0"])
    assert not go.is_set() and not told.is_set()
    assert not arena.loaded(["s1"]) and not arena.loaded(["s2"])
    go.set()
    arena.acquire(["s1", "s2"])
    assert told.wait(10)
    assert arena.stats.loads == 3
    arena.close()


def test_a_load_that_fails_leaves_the_rest_of_its_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arena, told, load = make(tmp_path), Event(), HostArena._load

    def fails(segment: str) -> None:
        if segment == "s1":
            raise BackendError("s1: no answer")
        load(arena, segment)

    monkeypatch.setattr(arena, "_load", fails)
    arena.prefetch(["s0", "s1", "s2"], done=told.set)
    assert told.wait(10) and arena.loaded(["s0", "s1", "s2"])
    assert arena.residents == ("s0", "s2")
    arena.acquire(["s0", "s2"])
    assert arena.stats.loads == 3, "they are not loaded again"
    with pytest.raises(BackendError, match="no answer"):
        arena.acquire(["s1"])
    arena.close()


def test_an_interrupt_leaves_nothing_to_wait_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arena, load = make(tmp_path), HostArena._load

    def interrupted(segment: str) -> None:
        if segment == "s1":
            raise KeyboardInterrupt
        load(arena, segment)

    with monkeypatch.context() as patch:
        patch.setattr(arena, "_load", interrupted)
        with pytest.raises(KeyboardInterrupt):
            arena.acquire(["s0", "s1", "s2"])
    assert arena.residents == ("s0",)
    arena.acquire(["s0", "s1", "s2"])
    assert set(arena.residents) == {"s0", "s1", "s2"}
    arena.close()


def test_what_is_held_is_not_dropped_and_what_does_not_fit_is_not_begun(tmp_path: Path) -> None:
    arena = make(tmp_path, 4 * PAGE)
    arena.acquire(["s1"])
    with pytest.raises(BackendError, match="segment s1 cannot be dropped while a model holds it"):
        arena.prefetch(["s0"], evict=["s1"])
    with pytest.raises(BackendError, match=f"{2 * PAGE} bytes are to be loaded, and {PAGE} of {4 * PAGE} are free"):
        arena.prefetch(["s3"])
    assert arena.residents == ("s1",)
    arena.release(["s1"])
    # A prefetch evicts nothing by itself: the plan says what to evict.
    with pytest.raises(BackendError, match="are free"):
        arena.prefetch(["s3"])
    arena.prefetch(["s3"], evict=["s1", "s2"])
    assert arena.residents == ("s3",)
    arena.close()


@pytest.mark.parametrize("cold", [False, True])
def test_what_is_dropped_may_leave_the_page_cache(cold: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _, *what: told.append(what))
    arena = make(tmp_path, cold=cold)
    arena.acquire(["s1"])
    arena.release(["s1"])
    arena.evict()
    assert told == ([(2 * PAGE, 3 * PAGE, os.POSIX_FADV_DONTNEED)] if cold else [])


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


def seen_from_outside(path: Path) -> int:
    """Return the bytes of a file that are in this process's memory, as the kernel counts them."""
    return sum(file.rss for file in psutil.Process().memory_maps() if file.path == str(path))


@pytest.mark.parametrize("cold", [False, True])
@pytest.mark.parametrize("length", [PAGE // 2, 25 * PAGE // 2, HUGE_PAGE + PAGE // 2])
def test_the_kernel_counts_no_more_than_the_arena(length: int, cold: bool, tmp_path: Path) -> None:
    step = HUGE_PAGE * 2 if length > HUGE_PAGE else footprint(length) + PAGE
    tensors, segments = {}, {}
    for index in range(6):
        place = {"offset": index * step, "length": length}
        tensors[ident(index)] = TensorSpec(dtype="uint8", shape=(length,), **place)
        segments[f"s{index}"] = SegmentSpec(models=("m",), tensors=(ident(index),), **place)
    blob = tmp_path / "weights"
    blob.write_bytes(bytes(6 * step))
    arena = HostArena(blob, tensors, segments, 3 * footprint(length), Loading(cold))
    for turn in range(12):
        names = [f"s{turn % 6}", f"s{(turn * 5 + 1) % 6}"]
        arena.acquire(names)
        for name in names:
            arena.tensor(ident(int(name[1:]))).sum()
        assert length <= seen_from_outside(blob) <= arena.resident <= arena.budget
        arena.release(names)
    arena.evict()
    assert seen_from_outside(blob) == 0
    arena.close()


def test_what_is_dropped_while_it_comes_is_dropped_after_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arena, done, go = make(tmp_path, footprint(SIZES[4])), list[str](), Event()

    def load(segment: str) -> None:
        if segment == "s4":
            assert go.wait(10)
        done.append(f"load {segment}")

    monkeypatch.setattr(arena, "_load", load)
    monkeypatch.setattr(arena, "_drop", lambda segment: done.append(f"drop {segment}"))
    arena.prefetch(["s4"])
    Timer(0.05, go.set).start()
    # There is no room beside s4, so it is evicted, although its load is not over.
    arena.acquire(["s1"])
    assert done == ["load s4", "drop s4", "load s1"]
    arena.close()


@pytest.mark.parametrize("ahead", [False, True])
def test_what_cannot_be_loaded_is_said_and_tried_again(
    ahead: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arena, broken, load, loaded = make(tmp_path), Event(), HostArena._load, list[str]()

    def fails(segment: str) -> None:
        if segment == "s1" and broken.is_set():
            raise BackendError("s1: no answer")
        load(arena, segment)
        loaded.append(segment)

    monkeypatch.setattr(arena, "_load", fails)
    broken.set()
    for _ in range(2):
        if ahead:
            over = Event()
            arena.prefetch(["s0", "s1", "s2"], done=over.set)
            assert over.wait(10)
            # Nobody waits for a load that failed: acquiring the segment tries again.
            assert arena.loaded(["s0", "s1", "s2"])
        with pytest.raises(BackendError, match="no answer"):
            arena.acquire(["s0", "s1", "s2"])
        assert set(arena.residents) == {"s0", "s2"}, "the other segments of the batch stay"
    broken.clear()
    arena.acquire(["s0", "s1", "s2"])
    assert set(arena.residents) == {"s0", "s1", "s2"}
    assert loaded == ["s0", "s2", "s1"]
    # The failed calls hold nothing.
    arena.release(["s0", "s1", "s2"])
    arena.evict()
    assert arena.resident == 0
    arena.close()
