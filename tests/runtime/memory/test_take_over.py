"""One arena takes the place of another: tensors that both have stay in memory at their addresses, others leave."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gemel.bundles.blob import Layout, footprint, layout, tensor_id, write_blob
from gemel.bundles.manifest import TensorSpec
from gemel.runtime.memory.guarded_file import GuardedFile
from gemel.runtime.memory.host_arena import HostArena, _pages, _without

LENGTHS = (40, 5000, 9000, 20_000, 64, 4096, 12_288, 3)
"""Bytes of the tensors that blobs are made of."""
ARRAYS = [np.random.default_rng(seed).integers(0, 256, length, np.uint8) for seed, length in enumerate(LENGTHS)]


class Blob(NamedTuple):
    path: Path
    arrays: dict[str, NDArray[np.uint8]]
    placed: Layout

    def open(self, before: HostArena | None = None, budget: int | None = None) -> HostArena:
        return HostArena(self.path, self.placed.tensors, self.placed.segments, budget, before=before)


def write(path: Path, users: Mapping[int, str]) -> Blob:
    """Write a blob with some of ARRAYS; ``users`` has the models, as letters, that use each of them."""
    arrays = {tensor_id(ARRAYS[index]): ARRAYS[index] for index in users}
    placed = layout(
        {name: ("uint8", array.shape) for name, array in arrays.items()},
        {tensor_id(ARRAYS[index]): list(models) for index, models in users.items()},
    )
    write_blob(path, placed, arrays.__getitem__)
    return Blob(path, arrays, placed)


def in_memory(arena: HostArena) -> int:
    """Return the bytes of the arena's blobs that the kernel says are mapped and in memory, in all of them together."""
    paths = {str(blob.file.path) for blob in (arena.blob, *arena._earlier)}
    return sum(each.rss for each in psutil.Process().memory_maps(grouped=True) if each.path in paths)


def is_split(arena: HostArena) -> bool:
    """Return whether tensors that lie side by side in one blob are in several parts."""
    kept = [part.kept for part in arena._parts.values() if part.kept is not None]
    return len(set(kept)) < len(kept) or any("kept" in name for name in kept)


def check(arena: HostArena, arrays: Mapping[str, NDArray[np.uint8]]) -> None:
    for name, array in arrays.items():
        assert np.array_equal(arena.tensor(name), array)


def test_only_new_tensors_are_loaded(tmp_path: Path) -> None:
    # Model b is exchanged: tensor 3 was shared by both, and 2 was its own; now it has 6, and 3 belongs to a alone.
    first = write(tmp_path / "first", {0: "a", 1: "a", 3: "ab", 2: "b"})
    second = write(tmp_path / "second", {0: "a", 1: "a", 3: "a", 6: "b"})
    before = first.open()
    before.acquire(before.sizes)
    before.release(before.sizes)
    addresses = {tensor_id(ARRAYS[index]): before.tensor(tensor_id(ARRAYS[index])).ctypes.data for index in (0, 1, 3)}
    after = second.open(before)
    assert before.resident == sum(before.sizes.values())
    after.take_over(before)
    before.close()
    assert after.kept_bytes == after.resident
    assert after.stats.loaded == 0
    assert in_memory(after) == after.resident
    check(after, {name: array for name, array in second.arrays.items() if name in addresses})
    assert {name: after.tensor(name).ctypes.data for name in addresses} == addresses
    after.acquire(after.sizes)
    assert after.stats.loaded == footprint(LENGTHS[6])
    check(after, second.arrays)
    after.close()


def test_what_does_not_fit_the_new_budget_leaves(tmp_path: Path) -> None:
    users = {1: "a", 2: "b", 3: "c"}
    first = write(tmp_path / "first", users)
    second = write(tmp_path / "second", users)
    before = first.open()
    before.acquire(before.sizes)
    before.release(before.sizes)
    after = second.open(before, budget=footprint(LENGTHS[3]))
    after.take_over(before)
    before.close()
    assert in_memory(after) == after.resident <= after.budget
    check(after, second.arrays)
    after.close()


def test_weights_that_are_not_mapped_are_loaded_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GuardedFile, "_take_lease", lambda self: False)
    first = write(tmp_path / "first", {1: "a", 2: "b"})
    second = write(tmp_path / "second", {1: "a", 2: "b"})
    before = first.open()
    before.acquire(before.sizes)
    before.release(before.sizes)
    after = second.open(before)
    after.take_over(before)
    before.close()
    assert after.kept_bytes == after.resident == 0
    after.acquire(after.sizes)
    check(after, second.arrays)
    after.close()


# A file of an earlier example may still be mapped.
NUMBERS = count()
USERS = st.dictionaries(st.integers(0, len(LENGTHS) - 1), st.sampled_from(["a", "b", "ab", "c", "abc"]), min_size=1)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chain=st.lists(st.tuples(USERS, st.sets(st.integers(0, 9))), min_size=2, max_size=5))
def test_any_chain_of_bundles(tmp_path: Path, chain: list[tuple[dict[int, str], set[int]]]) -> None:
    arena: HostArena | None = None
    for users, wanted in chain:
        blob = write(tmp_path / f"{next(NUMBERS)}", users)
        try:
            after = blob.open(arena)
            if arena is not None:
                after.take_over(arena)
                arena.close()
            arena = after
            names = list(arena.sizes)
            chosen = [names[index] for index in wanted if index < len(names)]
            held = set(arena.residents)
            arena.acquire(chosen)
            assert arena.stats.loaded == sum(arena.sizes[name] for name in chosen if name not in held)
            arena.release(chosen)
            assert arena.resident <= arena.budget
            assert in_memory(arena) <= (arena.budget if is_split(arena) else arena.resident)
            # Reading others would bring their pages into memory.
            residents = set(arena.residents)
            check(arena, {name: each for name, each in blob.arrays.items() if arena._part_of[name] in residents})
            arena.evict()
            arena.acquire(chosen)
            arena.release(chosen)
        finally:
            blob.path.unlink()
    assert arena is not None
    check(arena, blob.arrays)
    arena.close()


def test_a_thousand_exchanges_leak_nothing(tmp_path: Path) -> None:
    """Two bundles in turns: neither descriptors nor mappings nor memory grow."""
    blobs = [write(tmp_path / name, {0: "a", 1: "a", number: "b"}) for name, number in (("x", 2), ("y", 3))]
    arena = blobs[0].open()
    process, seen = psutil.Process(), []
    for turn in range(1000):
        arena.acquire(arena.sizes)
        arena.release(arena.sizes)
        after = blobs[(turn + 1) % 2].open(arena)
        after.take_over(arena)
        arena.close()
        arena = after
        if turn in (199, 999):
            maps = len(Path("/proc/self/maps").read_text().splitlines())
            seen.append((len(list(Path("/proc/self/fd").iterdir())), maps, process.memory_info().rss))
    (files, maps, memory), (files_then, maps_then, memory_then) = seen
    assert files_then <= files + 5
    assert maps_then <= maps + 20
    assert memory_then <= memory + 20e6
    arena.close()


def test_pages() -> None:
    places = ((9000, 10), (0, 4096), (5000, 100), (20_000, 1))
    tensors = [TensorSpec(offset=begin, length=size, dtype="uint8", shape=(size,)) for begin, size in places]
    assert _pages(tensors) == ((0, 9010), (16_384, 3617))
    assert _without([(0, 20_000)], [(4096, 4096), (16_384, 1)]) == [(0, 4096), (8192, 8192)]
    assert _without([(0, 4096)], [(0, 100)]) == []
    assert _without([(8192, 10)], []) == [(8192, 4096)]
