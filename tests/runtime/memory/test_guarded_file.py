"""Weights that another program overwrites or shortens: a run goes on with the right bytes, and is never killed."""

from __future__ import annotations

import gc
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep

import numpy as np
import pytest
from helpers import query, save
from host_device import HostDevice
from segments import PAGE, Segments, write_segments
from tiny_models import TinyTransformer

from gemel.bundles.blob import HUGE_PAGE
from gemel.bundles.reader import open_bundle
from gemel.compiler import compile_workload
from gemel.errors import BackendError
from gemel.runtime.backends.ort_cpu import OrtCpu
from gemel.runtime.memory import guarded_file
from gemel.runtime.memory.device_arena import DeviceArena
from gemel.runtime.memory.guarded_file import GuardedFile
from gemel.runtime.memory.host_arena import HostArena
from gemel.workload import Workload

SIZES = [PAGE, 3 * PAGE + 100, 0, HUGE_PAGE + 5000]
HARMS = {
    "shortened": "import os, sys; os.truncate(sys.argv[1], 0)",
    "overwritten": "import sys; open(sys.argv[1], 'r+b').write(b'x' * 5000)",
    "emptied": "import sys; open(sys.argv[1], 'w')",
}
"""What another program does to a file -> Python code that does it to the file in its first argument."""


def harm(code: str, path: Path) -> None:
    """Let another program write to a file, and wait until it has done so."""
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, timeout=60)


@pytest.fixture
def unguarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give no leases, as network file systems and files of other users do."""
    monkeypatch.setattr(GuardedFile, "_take_lease", lambda self: False)


def check(arena: HostArena, blob: Segments, names: list[str]) -> None:
    """Compare the tensors of some segments with what was written; a page that is gone would end this process."""
    for name in names:
        for tensor in blob.segments[name].tensors:
            spec = blob.tensors[tensor]
            assert arena.tensor(tensor).tobytes() == blob.data[spec.offset : spec.offset + spec.length], name


@pytest.mark.parametrize("code", HARMS.values(), ids=HARMS)
def test_a_mapped_file(code: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    blob = write_segments(tmp_path, SIZES)
    arena = HostArena(blob.path, blob.tensors, blob.segments)
    arena.acquire(["s0", "s3"])
    seen = arena.tensor(blob.segments["s3"].tensors[1])
    harm(code, blob.path)
    assert blob.path.read_bytes() != blob.data
    check(arena, blob, ["s0", "s3"])
    arena.acquire(["s1", "s2"])
    check(arena, blob, list(blob.segments))
    arena.release(list(blob.segments))
    arena.evict()
    arena.acquire(["s3"])
    check(arena, blob, ["s3"])
    assert seen.tobytes() == arena.tensor(blob.segments["s3"].tensors[1]).tobytes()
    assert f"{blob.path}: another program writes to it; the run goes on with a copy until it ends" in caplog.messages
    assert [path.name for path in tmp_path.iterdir()] == [blob.path.name]
    arena.close()


def test_reading_replacing_and_deleting_a_file_is_nothing(tmp_path: Path) -> None:
    blob = write_segments(tmp_path, SIZES)
    arena = HostArena(blob.path, blob.tensors, blob.segments)
    arena.acquire(["s0"])
    assert blob.path.read_bytes() == blob.data
    shutil.copy(blob.path, tmp_path / "other")
    (tmp_path / "other").replace(blob.path)
    blob.path.unlink()
    sleep(2 * guarded_file._POLL_S)
    arena.acquire(["s1", "s3"])
    check(arena, blob, ["s0", "s1", "s3"])
    assert not arena.blob.file.overwritten
    arena.close()


def test_a_file_that_cannot_be_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(self: GuardedFile) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(GuardedFile, "_copy", full)
    blob = write_segments(tmp_path, SIZES)
    arena = HostArena(blob.path, blob.tensors, blob.segments)
    arena.acquire(["s0"])
    arena.blob.file._leave()
    with pytest.raises(BackendError, match="it cannot be copied: No space left on device; restart gemel"):
        arena.acquire(["s1"])
    # The writer still waits for the lease, so a run that has begun can end.
    check(arena, blob, ["s0"])
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    arena.close()


@pytest.mark.usefixtures("unguarded")
@pytest.mark.parametrize("code", HARMS.values(), ids=HARMS)
def test_a_file_that_is_not_mapped(code: str, tmp_path: Path) -> None:
    blob = write_segments(tmp_path, SIZES)
    arena = HostArena(blob.path, blob.tensors, blob.segments)
    arena.acquire(["s0", "s1", "s2"])
    check(arena, blob, ["s0", "s1", "s2"])
    arena.release(["s0"])
    arena.evict()
    assert not arena.tensor(blob.segments["s0"].tensors[0]).any()
    arena.acquire(["s0"])
    sleep(0.02)  # a file's time has the kernel's ticks
    harm(code, blob.path)
    check(arena, blob, ["s0", "s1"])
    with pytest.raises(BackendError, match="another program has overwritten it during the run; restart gemel"):
        arena.acquire(["s3"])
    arena.close()


@pytest.mark.usefixtures("unguarded")
def test_weights_that_are_not_mapped_cannot_be_changed(tmp_path: Path) -> None:
    blob = write_segments(tmp_path, SIZES)
    arena = HostArena(blob.path, blob.tensors, blob.segments)
    with pytest.raises(ValueError, match="read-only"):
        arena.tensor(blob.segments["s0"].tensors[0])[0] = 1
    arena.close()


@pytest.mark.parametrize("unified", [False, True])
@pytest.mark.parametrize("guarded", [False, True])
def test_a_device(unified: bool, guarded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not guarded:
        monkeypatch.setattr(GuardedFile, "_take_lease", lambda self: False)
    blob = write_segments(tmp_path, SIZES)
    device = HostDevice(unified=unified)
    arena = DeviceArena(device, blob.path, blob.tensors, blob.segments)
    arena.acquire(["s0"])
    sleep(0.02)
    harm(HARMS["shortened"], blob.path)
    if guarded:
        arena.acquire(["s1", "s3"])
        with arena.running():
            blob.check(device, arena, ["s0", "s1", "s3"])
    else:
        with pytest.raises(BackendError, match="another program has overwritten it"):
            arena.acquire(["s1"])
    arena.close()
    device.close()


IMAGES = np.random.default_rng(0).random((1, 3, 32, 32), np.float32)


@pytest.mark.parametrize("guarded", [False, True])
def test_a_session_that_maps_weights_itself(
    guarded: bool, tmp_path: Path, workload_in: Callable[..., Workload], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not guarded:
        monkeypatch.setattr(GuardedFile, "_take_lease", lambda self: False)
    save(TinyTransformer(), tmp_path / "t.safetensors")
    bundle = compile_workload(workload_in(query("t", "tiny_models:TinyTransformer")), tmp_path / "bundle").path
    with OrtCpu(open_bundle(bundle)) as backend:
        backend.activate("t")
        before = backend.run("t", "main", {"image": IMAGES})["logits"]
        harm(HARMS["shortened"], backend.baked.blob)
        np.testing.assert_array_equal(backend.run("t", "main", {"image": IMAGES})["logits"], before)
        backend._sessions.clear()
        backend.release("t")
        backend._bound.clear()
        with pytest.raises(BackendError, match="another program has overwritten it"):
            backend.activate("t")
    # The next start finds the damage.
    with OrtCpu(open_bundle(bundle)) as backend:
        backend.activate("t")
        np.testing.assert_array_equal(backend.run("t", "main", {"image": IMAGES})["logits"], before)


def watchers() -> int:
    return sum(thread.name == "gemel-lease" for thread in threading.enumerate())


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("closes", [True, False])
def test_nothing_is_left_of_a_guard(closes: bool, tmp_path: Path) -> None:
    gc.collect()
    ends = monotonic() + 10
    while watchers() and monotonic() < ends:
        sleep(0.01)
    blob = write_segments(tmp_path, SIZES)
    arena = HostArena(blob.path, blob.tensors, blob.segments)
    assert watchers() == 1
    descriptors = open_files()
    if closes:
        arena.close()
    else:
        arena._loader.shutdown()
    del arena
    gc.collect()
    while watchers() and monotonic() < ends:
        sleep(0.01)
    assert watchers() == 0
    assert open_files() == descriptors - 1
    harm(HARMS["shortened"], blob.path)
