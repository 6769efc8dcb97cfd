"""Tests of a card: it keeps the protocol of a device, and segments are whole in its memory."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from device_protocol import DeviceProtocol
from segments import write_segments

from gemel.runtime.device.cuda import CudaDevice
from gemel.runtime.memory.device_arena import DeviceArena

pytestmark = pytest.mark.gpu

MIB = 1 << 20


@pytest.fixture
def device() -> Iterator[CudaDevice]:
    device = CudaDevice()
    yield device
    device.close()


class TestCuda(DeviceProtocol):
    @pytest.fixture
    def device(self, device: CudaDevice) -> CudaDevice:
        return device


def test_what_is_known_of_it(device: CudaDevice) -> None:
    assert device.name
    assert device.target.startswith("sm") and device.target[2:].isdigit()


def test_what_other_threads_let_go_of_is_given_back(device: CudaDevice) -> None:
    def hold() -> None:
        device.pinned(MIB), device.stream(), device.event()

    # pycuda ends the process if a thread ends on which the card's context is still current.
    for _ in range(8):
        with ThreadPoolExecutor(1) as pool:
            pool.submit(hold).result()
    made = [device.stream() for _ in range(3)]
    with ThreadPoolExecutor(1) as pool:
        pool.submit(made.clear).result()


def test_a_second_device_after_the_first_is_closed(device: CudaDevice) -> None:
    device.allocate(MIB)
    device.close()
    other = CudaDevice()
    other.free(other.allocate(MIB))
    other.close()


def test_segments_come_and_go(device: CudaDevice, tmp_path: Path) -> None:
    """Load segments that need several buffers, around two that stay behind holes of 64 KiB and 264 KiB."""
    sizes = [64 << 10, MIB, 200 << 10, 3 * MIB, 9 * MIB + 100, 5 * MIB, 6 * MIB + 1, 0, 300, 12 * MIB]
    stay = ["s1", "s3"]
    blob = write_segments(tmp_path, sizes)
    arena = DeviceArena(device, blob.path, blob.tensors, blob.segments, 16 * MIB)
    arena.acquire(["s0", "s1", "s2", "s3"])
    before = [arena.place(name) for name in stay]
    arena.release(["s0", "s2"])
    random = np.random.default_rng(0)
    for _ in range(200):
        wanted = [f"s{index}" for index in random.choice(len(sizes), 2, replace=False)]
        if sum(arena.sizes[name] for name in {*wanted, *stay}) <= arena.budget:
            arena.acquire(wanted)
            with arena.running():
                blob.check(device, arena, [*wanted, *stay])
            arena.release(wanted)
    moved = [old - arena.place(name) for old, name in zip(before, stay, strict=True)]
    assert moved == [64 << 10, 264 << 10]
    arena.close()
