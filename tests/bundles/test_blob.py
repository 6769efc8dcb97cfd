"""The blob: every tensor once, in segments that can be mapped on their own."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import numpy as np
from hypothesis import given, settings
from numpy.typing import NDArray

from gemel.bundles.blob import layout, tensor_id, write_blob
from gemel.bundles.reader import view
from gemel.runtime.memory.host_arena import HostArena

PAGE = 4096
TENSORS: st.SearchStrategy[NDArray[Any]] = st.one_of(
    *(arrays.arrays(dtype, arrays.array_shapes(max_dims=4, max_side=5)) for dtype in (np.float32, np.float16, np.int8))
)
MODELS = st.lists(st.lists(TENSORS, max_size=6), min_size=1, max_size=4)


@settings(deadline=None, max_examples=60)
@given(models=MODELS, again=st.booleans())
def test_round_trip(models: list[list[NDArray[Any]]], again: bool) -> None:
    """Every tensor is stored once, aligned, in the segment of its users, and read back bit for bit."""
    if again:
        models = [*models, models[0]]
    held: dict[str, NDArray[Any]] = {}
    users: dict[str, set[str]] = {}
    for index, tensors in enumerate(models):
        for array in tensors:
            held[tensor_id(array)] = array
            users.setdefault(tensor_id(array), set()).add(f"m{index}")
    shapes = {tensor: (array.dtype.name, array.shape) for tensor, array in held.items()}
    plan = layout(shapes, users)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.bin"
        digest = write_blob(path, plan, held.__getitem__)
        data = path.read_bytes()
    assert digest == hashlib.sha256(data).hexdigest()
    assert len(data) == plan.bytes
    blob = np.frombuffer(data, np.uint8)
    for tensor, array in held.items():
        found = view(blob, plan.tensors[tensor])
        assert (found.dtype, found.shape, found.tobytes()) == (array.dtype, array.shape, array.tobytes())
        assert plan.tensors[tensor].offset % 64 == 0
    placed = [tensor for segment in plan.segments.values() for tensor in segment.tensors]
    assert sorted(placed) == sorted(held)
    end = 0
    for segment in plan.segments.values():
        assert segment.offset % PAGE == 0
        # Without a page in between, Linux would map the next segment too.
        assert segment.offset >= end
        end = (segment.offset // PAGE + -(-segment.length // PAGE) + 1) * PAGE
        assert all(users[tensor] == set(segment.models) for tensor in segment.tensors)


def test_large_segments_start_on_huge_pages_and_padding_takes_no_disk(tmp_path: Path) -> None:
    small, large = np.ones(10, np.float32), np.ones(1 << 20, np.float32)
    held = {tensor_id(small): small, tensor_id(large): large}
    users = {tensor_id(small): {"a", "b"}, tensor_id(large): {"a"}}
    plan = layout({tensor: (array.dtype.name, array.shape) for tensor, array in held.items()}, users)
    assert plan.segments["s0"].models == ("a", "b")
    assert plan.segments["s1"].offset == 2 << 20
    write_blob(tmp_path / "w.bin", plan, held.__getitem__)
    assert (tmp_path / "w.bin").stat().st_size == 6 << 20
    assert (tmp_path / "w.bin").stat().st_blocks * 512 < 5 << 20


def test_a_workload_without_weights_has_a_blob_that_can_be_mapped(tmp_path: Path) -> None:
    plan = layout({}, {})
    held: dict[str, NDArray[Any]] = {}
    write_blob(tmp_path / "w.bin", plan, held.__getitem__)
    assert (tmp_path / "w.bin").stat().st_size == plan.bytes == PAGE
    assert HostArena(tmp_path / "w.bin", plan.tensors, plan.segments).budget == 0


def test_the_name_of_a_tensor_tells_type_and_shape() -> None:
    zeros = np.zeros((2, 3), np.float32)
    others = [zeros.reshape(3, 2), zeros.view(np.int32), zeros[:1], zeros + 1]
    assert len({tensor_id(array) for array in [zeros, *others]}) == 5
    assert tensor_id(zeros) == tensor_id(np.zeros((3, 2), np.float32).T.copy())
