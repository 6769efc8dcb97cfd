"""Tests of the device arena on the host double: segments are whole, within the budget, and where the arena says."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from threading import Event, Thread, Timer
from time import monotonic, sleep

import numpy as np
import psutil
import pytest
from host_device import HostDevice, HostStream
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from segments import PAGE, Segments, write_segments

from gemel.errors import BackendError
from gemel.runtime.memory import device_arena
from gemel.runtime.memory.device_arena import DeviceArena
from gemel.runtime.memory.loading import WARM, Loading

UNIT = 256
BUFFER = 1024
"""Bytes of a page-locked buffer in these tests."""
SHORT = 512
"""Distance in bytes below which these tests move segments through a page-locked buffer."""


@pytest.fixture(autouse=True, scope="module")
def small() -> Iterator[None]:
    """Make the buffers so small that segments need several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_arena, "_BUFFER", BUFFER)
        patch.setattr(device_arena, "_SHORT", SHORT)
        yield


def make(device: HostDevice, blob: Segments, budget: int | None = None, loading: Loading = WARM) -> DeviceArena:
    return DeviceArena(device, blob.path, blob.tensors, blob.segments, budget, loading)


def names(indices: set[int]) -> list[str]:
    return [f"s{index}" for index in sorted(indices)]


SIZES = [UNIT, 1, 0, 5 * UNIT, 700, 3 * BUFFER + 1, 2 * BUFFER, 6 * UNIT]
TOTAL = sum(map(DeviceArena.footprint, SIZES))
SOME = st.sets(st.integers(0, len(SIZES) - 1), min_size=1)
STEPS = st.lists(st.tuples(st.sampled_from(["acquire", "release", "prefetch", "evict"]), SOME, SOME), max_size=30)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(budget=st.integers(0, TOTAL + UNIT), unified=st.booleans(), steps=STEPS)
def test_contents_and_budget(
    tmp_path: Path, budget: int, unified: bool, steps: list[tuple[str, set[int], set[int]]]
) -> None:
    blob = write_segments(tmp_path, SIZES)
    # The device has not a byte more than the budget.
    device = HostDevice(budget, unified=unified)
    arena = make(device, blob, budget)
    held: list[list[str]] = []
    for what, members, others in steps:
        wanted, unwanted = names(members), names(others - members)
        if what == "acquire":
            busy = {name for group in held for name in group} | set(wanted)
            if sum(arena.sizes[name] for name in busy) <= budget:
                arena.acquire(wanted)
                held.append(wanted)
            else:
                with pytest.raises(BackendError, match=f"the budget is {budget}"):
                    arena.acquire(wanted)
        elif what == "prefetch":
            try:
                arena.prefetch(wanted, evict=unwanted)
            except BackendError as error:
                assert "cannot be dropped" in str(error) or "are to be loaded" in str(error)
        elif what == "evict":
            arena.evict()
        elif held:
            arena.release(held.pop(0))
        assert arena.resident <= budget
        # The last request may still be loading, and moving segments that are held.
        with arena.running():
            blob.check(device, arena, [name for group in held for name in group])
    arena.evict()
    with arena.running():
        blob.check(device, arena, arena.residents)
    places = sorted((arena.place(name), arena.sizes[name]) for name in arena.residents if arena.sizes[name])
    assert all(first + size <= second for (first, size), (second, _) in pairwise(places))
    for group in held:
        arena.release(group)
    arena.evict()
    for name in arena.sizes:
        with pytest.raises(BackendError, match=f"segment {name} is not in the memory of host"):
            arena.place(name)
    arena.close()
    assert device.memory() == (budget, budget)
    device.close()


@pytest.mark.parametrize(
    ("hole", "length", "copies"),
    [
        pytest.param(4 * UNIT, 3 * UNIT, 1, id="at once"),
        pytest.param(3 * UNIT, 11 * UNIT, 4, id="piece by piece"),
        pytest.param(UNIT, 11 * UNIT, 0, id="by way of the machine"),
    ],
)
def test_what_is_in_pieces_is_moved_together(
    hole: int, length: int, copies: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rest = 4 * UNIT
    blob = write_segments(tmp_path, [hole, length, rest, hole + rest])
    device = HostDevice()
    arena = make(device, blob, hole + length + rest)
    arena.acquire(["s0", "s1", "s2"])
    arena.release(["s0", "s2"])
    before, move = arena.place("s1"), device.move
    sizes: list[int] = []

    def watched(target: int, source: int, size: int, stream: HostStream) -> None:
        sizes.append(size)
        move(target, source, size, stream)

    monkeypatch.setattr(device, "move", watched)
    arena.acquire(["s3"])
    assert (arena.place("s1"), len(sizes)) == (before - hole, copies)
    assert arena.residents == ("s1", "s3")
    with arena.running():
        blob.check(device, arena, ["s1", "s3"])
    arena.close()
    device.close()


def test_nothing_moves_while_a_model_runs(tmp_path: Path) -> None:
    blob = write_segments(tmp_path, [UNIT, UNIT, UNIT, 2 * UNIT])
    device = HostDevice()
    arena = make(device, blob, 3 * UNIT)
    arena.acquire(["s0", "s1", "s2"])
    arena.release(["s0", "s2"])
    before, began, stop, told = arena.place("s1"), Event(), Event(), Event()

    def run() -> None:
        with arena.running():
            began.set()
            while not stop.is_set():
                assert arena.place("s1") == before
                blob.check(device, arena, ["s1"])

    runner = Thread(target=run)
    runner.start()
    assert began.wait(10)
    arena.prefetch(["s3"], evict=["s0", "s2"], done=told.set)
    assert not told.wait(0.2) and not arena.loaded(["s3"])
    stop.set()
    assert told.wait(10) and arena.loaded(["s3"])
    runner.join()
    assert arena.place("s1") != before
    with arena.running():
        blob.check(device, arena, ["s1", "s3"])
    arena.close()
    device.close()


def test_runs_and_loading_ahead_take_turns(tmp_path: Path) -> None:
    """One model is never evicted and runs all the time, while segments around it are loaded and evicted."""
    sizes = [2 * BUFFER, UNIT, 3 * UNIT, 5 * UNIT, 2 * UNIT, BUFFER]
    blob = write_segments(tmp_path, sizes)
    device = HostDevice(2 * BUFFER + 8 * UNIT)
    arena = make(device, blob, 2 * BUFFER + 8 * UNIT)
    arena.acquire(["s1"])
    arena.acquire(["s0"])
    arena.release(["s1"])
    stop, found, places = Event(), [], set()

    def run() -> None:
        try:
            while not stop.is_set():
                with arena.running():
                    places.add(arena.place("s0"))
                    blob.check(device, arena, ["s0"])
        except BaseException as error:
            found.append(error)

    runner = Thread(target=run)
    runner.start()
    random = np.random.default_rng(1)
    for _ in range(300):
        wanted = [f"s{random.integers(1, len(sizes))}" for _ in range(2)]
        if sum(arena.sizes[name] for name in set(wanted)) <= 8 * UNIT:
            arena.acquire(wanted)
            with arena.running():
                blob.check(device, arena, wanted)
            arena.release(wanted)
    stop.set()
    runner.join()
    assert not found
    assert len(places) > 1
    arena.close()
    device.close()


def blocked(arena: DeviceArena) -> Event:
    """Halt the arena's copies until the returned event is set."""
    go, stream = Event(), arena._stream
    assert isinstance(stream, HostStream)
    stream.submit(lambda: go.wait(10))
    return go


@pytest.mark.parametrize("unified", [False, True])
def test_loading_ahead_holds_nobody_up_and_who_needs_it_waits(unified: bool, tmp_path: Path) -> None:
    blob = write_segments(tmp_path, [5 * BUFFER, UNIT, 5 * BUFFER])
    device = HostDevice(unified=unified)
    arena = make(device, blob, 6 * BUFFER)
    go, told = blocked(arena), Event()
    arena.prefetch(["s0"], done=told.set)
    assert not told.wait(0.05) and not arena.loaded(["s0"])
    with pytest.raises(BackendError, match="s0 is not in the memory"):
        arena.place("s0")
    Timer(0.05, go.set).start()
    arena.acquire(["s0"])
    assert arena.stats.blocked_s > 0
    with arena.running():
        blob.check(device, arena, ["s0"])
    # A segment that is evicted while it loads is evicted after its load, and the next segment is loaded after that.
    arena.release(["s0"])
    arena.evict()
    go = blocked(arena)
    arena.prefetch(["s0"])
    Timer(0.05, go.set).start()
    arena.acquire(["s2"])
    assert arena.residents == ("s2",)
    with arena.running():
        blob.check(device, arena, ["s2"])
    arena.close()
    device.close()


@pytest.mark.parametrize("unified", [False, True])
def test_nobody_waits_for_the_rest_of_a_batch(unified: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = write_segments(tmp_path, [UNIT, 2 * UNIT, UNIT])
    device = HostDevice(unified=unified)
    arena, begun, go, told, upload = make(device, blob), Event(), Event(), Event(), device.upload

    def halting(target: int, source: NDArray[np.uint8], stream: HostStream) -> None:
        if len(source) == 2 * UNIT:
            begun.set()
            assert go.wait(10)
        upload(target, source, stream)

    monkeypatch.setattr(device, "upload", halting)
    arena.prefetch(["s0", "s1", "s2"], done=told.set)
    # The loader is at s1 now, and does not go on before it is told to.
    assert begun.wait(10)
    assert arena.loaded(["s0"])
    arena.acquire(["s0"])
    with arena.running():
        blob.check(device, arena, ["s0"])
    assert not go.is_set() and not told.is_set()
    assert not arena.loaded(["s1"]) and not arena.loaded(["s2"])
    go.set()
    arena.acquire(["s1", "s2"])
    assert told.wait(10)
    with arena.running():
        blob.check(device, arena, ["s0", "s1", "s2"])
    arena.close()
    device.close()


def test_a_load_that_fails_leaves_the_rest_of_its_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = write_segments(tmp_path, [UNIT, 2 * UNIT, UNIT])
    device = HostDevice()
    arena, told, upload = make(device, blob), Event(), device.upload

    def fails(target: int, source: NDArray[np.uint8], stream: HostStream) -> None:
        if len(source) == 2 * UNIT:
            refuse()
        upload(target, source, stream)

    with monkeypatch.context() as patch:
        patch.setattr(device, "upload", fails)
        arena.prefetch(["s0", "s1", "s2"], done=told.set)
        assert told.wait(10) and arena.loaded(["s0", "s1", "s2"])
    assert arena.residents == ("s0", "s2")
    arena.acquire(["s0", "s2"])
    assert arena.stats.loads == 3, "they are not loaded again"
    arena.acquire(["s1"])
    with arena.running():
        blob.check(device, arena, ["s0", "s1", "s2"])
    arena.close()
    device.close()


def test_a_place_says_whether_to_bind_anew(tmp_path: Path) -> None:
    blob = write_segments(tmp_path, [UNIT, UNIT, 2 * UNIT])
    device = HostDevice()
    arena = make(device, blob, 2 * UNIT)
    arena.acquire(["s0"])
    first = arena.place("s0")
    arena.release(["s0"])
    arena.acquire(["s2"])
    arena.release(["s2"])
    arena.acquire(["s0"])
    assert arena.place("s0") == first
    arena.release(["s0"])
    arena.evict()
    arena.acquire(["s1", "s0"])
    assert arena.place("s0") == first + UNIT
    tensor = blob.segments["s0"].tensors[1]
    assert arena.address(tensor) == first + UNIT + 64
    arena.close()
    device.close()


@pytest.mark.parametrize("budget", [None, 100 * UNIT])
def test_no_more_is_allocated_than_all_segments_need(budget: int | None, tmp_path: Path) -> None:
    blob = write_segments(tmp_path, [1, UNIT + 1, 0])
    device = HostDevice(3 * UNIT)
    arena = make(device, blob, budget)
    assert device.memory() == (0, 3 * UNIT)
    assert arena.sizes == {"s0": UNIT, "s1": 2 * UNIT, "s2": 0}
    assert arena.budget == (3 * UNIT if budget is None else budget)
    arena.acquire(["s0", "s1", "s2"])
    with arena.running():
        blob.check(device, arena, ["s0", "s1", "s2"])
    arena.close()
    arena.close()
    assert device.memory() == (3 * UNIT, 3 * UNIT)
    device.close()


def test_out_of_memory(tmp_path: Path) -> None:
    blob = write_segments(tmp_path, [10 * UNIT])
    device = HostDevice(9 * UNIT)
    with pytest.raises(BackendError, match=f"{10 * UNIT} bytes are asked for, and {9 * UNIT} of {9 * UNIT} are free"):
        make(device, blob)
    assert device.memory() == (9 * UNIT, 9 * UNIT)
    device.close()


def refuse(*what: object) -> None:
    raise BackendError("host: no")


def test_what_could_not_be_loaded_is_not_there_and_takes_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = write_segments(tmp_path, [UNIT, UNIT, UNIT, UNIT, UNIT, 3 * UNIT])
    device = HostDevice()
    arena, told = make(device, blob, 6 * UNIT), Event()
    arena.acquire(["s0", "s1", "s2", "s3"])
    with monkeypatch.context() as patch:
        patch.setattr(device, "upload", refuse)
        arena.prefetch(["s4"], done=told.set)
        assert told.wait(10)
    with pytest.raises(BackendError, match="s4 is not in the memory"):
        arena.place("s4")
    arena.release(["s0", "s2"])
    arena.prefetch(["s5"], evict=["s0", "s2"])
    arena.acquire(["s5"])
    with arena.running():
        blob.check(device, arena, ["s1", "s3", "s5"])
    with pytest.raises(BackendError, match="s4 is not in the memory"):
        arena.place("s4")
    # Acquired again, it is loaded.
    arena.release(["s5"])
    arena.evict()
    arena.acquire(["s4"])
    with arena.running():
        blob.check(device, arena, ["s1", "s3", "s4"])
    arena.close()
    device.close()


def test_what_could_not_be_moved_is_loaded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = write_segments(tmp_path, [UNIT, UNIT, UNIT, 2 * UNIT])
    device = HostDevice()
    arena, told = make(device, blob, 3 * UNIT), Event()
    arena.acquire(["s0", "s1", "s2"])
    arena.release(["s0", "s2"])
    with monkeypatch.context() as patch:
        patch.setattr(device, "move", refuse)
        arena.prefetch(["s3"], evict=["s0", "s2"], done=told.set)
        assert told.wait(10)
        for name in ("s1", "s3"):
            with pytest.raises(BackendError, match=f"{name} is not in the memory"):
                arena.place(name)
    # Nobody waits for them, and they take no room of the budget.
    assert arena.loaded(["s1", "s3"])
    assert (arena.residents, arena.resident) == ((), 0)
    # The model that held s1 lets go of it, and the next one gets both.
    arena.release(["s1"])
    arena.acquire(["s1", "s3"])
    with arena.running():
        blob.check(device, arena, ["s1", "s3"])
    assert set(arena.residents) == {"s1", "s3"}
    arena.release(["s1", "s3"])
    arena.evict()
    assert arena.residents == ()
    arena.close()
    device.close()


def test_what_is_lost_while_it_is_held_is_loaded_for_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = write_segments(tmp_path, [UNIT, UNIT, UNIT, 2 * UNIT])
    device = HostDevice()
    arena = make(device, blob, 3 * UNIT)
    arena.acquire(["s0", "s1", "s2"])
    arena.release(["s0", "s2"])
    with monkeypatch.context() as patch:
        patch.setattr(device, "move", refuse)
        with pytest.raises(BackendError, match="host: no"):
            arena.acquire(["s3"])
    # Held by one model still, and acquired by another one.
    arena.acquire(["s1"])
    with arena.running():
        blob.check(device, arena, ["s1"])
    arena.release(["s1"])
    with pytest.raises(BackendError, match="segment s1 cannot be dropped while a model holds it"):
        arena.prefetch([], evict=["s1"])
    arena.release(["s1"])
    arena.prefetch([], evict=["s1"])
    assert arena.residents == ()
    arena.close()
    device.close()


@pytest.mark.parametrize(("unified", "on_their_way"), [(False, 2), (True, 5)])
def test_one_buffer_is_filled_while_the_other_is_on_its_way(
    unified: bool, on_their_way: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = write_segments(tmp_path, [5 * BUFFER])
    device = HostDevice(unified=unified)
    arena, asked, upload = make(device, blob), [], device.upload

    def watched(target: int, source: NDArray[np.uint8], stream: HostStream) -> None:
        # The mapped file is read-only; the page-locked buffers are not.
        assert source.flags.writeable is not unified
        asked.append(target)
        upload(target, source, stream)

    monkeypatch.setattr(device, "upload", watched)
    go = blocked(arena)
    arena.prefetch(["s0"])
    ends = monotonic() + 10
    while len(asked) < on_their_way and monotonic() < ends:
        sleep(0.001)
    sleep(0.05)
    assert len(asked) == on_their_way
    go.set()
    arena.acquire(["s0"])
    assert len(asked) == 5
    arena.close()
    device.close()


def test_bandwidth(tmp_path: Path) -> None:
    blob = write_segments(tmp_path, [4 * UNIT])
    told: list[tuple[str, float]] = []
    device = HostDevice()
    loading = Loading(bandwidth=40.0 * UNIT, watch=lambda name, begin, end: told.append((name, end - begin)))
    arena = make(device, blob, loading=loading)
    began = monotonic()
    arena.acquire(["s0"])
    assert monotonic() - began >= 0.1
    assert [name for name, _ in told] == ["s0"] and told[0][1] >= 0.1
    arena.close()
    device.close()


@pytest.mark.parametrize("cold", [False, True])
def test_what_is_dropped_may_leave_the_page_cache(cold: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _, *what: told.append(what))
    blob = write_segments(tmp_path, [PAGE, 2 * PAGE + 100])
    device = HostDevice()
    arena = make(device, blob, loading=Loading(cold))
    arena.acquire(["s1"])
    arena.release(["s1"])
    assert told == []
    arena.evict()
    assert told == ([(2 * PAGE, 3 * PAGE, os.POSIX_FADV_DONTNEED)] if cold else [])
    arena.close()
    device.close()


@pytest.mark.parametrize("unified", [False, True])
def test_the_machine_keeps_no_second_copy(unified: bool, tmp_path: Path) -> None:
    blob = write_segments(tmp_path, [1 << 20, (1 << 20) + 100])
    device = HostDevice(unified=unified)
    arena = make(device, blob)
    arena.acquire(["s0", "s1"])
    assert sum(file.rss for file in psutil.Process().memory_maps() if file.path == str(blob.path)) == 0
    with arena.running():
        blob.check(device, arena, ["s0", "s1"])
    arena.close()
    device.close()
