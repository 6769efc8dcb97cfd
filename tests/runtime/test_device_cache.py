"""Device caches that are damaged, half written, or have no room: found, made again, and reported with one line."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from helpers import BIN
from onnx import helper, numpy_helper

from gemel import durable
from gemel.bundles import verified
from gemel.bundles.reader import Bundle, open_bundle, sha256_of
from gemel.errors import BackendError, BundleError
from gemel.runtime import device_cache as cache
from gemel.runtime.backends.ort_cpu import OrtCpu
from gemel.runtime.ort import optimise
from gemel.runtime.ort.session import open_session

IMAGES = np.random.default_rng(0).random((1, 3, 32, 32), np.float32)


@pytest.fixture
def made(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """Return a bundle with a device cache; the user's cache folder is below ``tmp_path``."""
    monkeypatch.setattr(cache, "user_cache_path", lambda name: tmp_path / "cache" / name)
    opened = open_bundle(bundle)
    OrtCpu(opened).close()
    return opened


def cache_of(bundle: Path) -> Path:
    (folder,) = (bundle / "device-cache").iterdir()
    return folder


def answers(bundle: Bundle) -> dict[str, np.ndarray]:
    """Return model -> output, of a backend that is opened anew."""
    found = {}
    with OrtCpu(bundle) as backend:
        for model in bundle.manifest.models:
            backend.activate(model)
            found[model] = backend.run(model, "main", {"image": IMAGES})["logits"]
    return found


def flip(path: Path) -> None:
    """Change one bit, keep the file's size, and set its time back as a broken disk would."""
    status, data = path.stat(), bytearray(path.read_bytes())
    data[len(data) // 3] ^= 4
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("suffix", [".bin", ".onnx", "cache.json"])
def test_a_changed_bit_is_found_at_the_next_start(
    suffix: str, made: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before, folder = answers(made), cache_of(made.path)
    file = next(path for path in folder.iterdir() if path.name.endswith(suffix))
    flip(file)
    after = answers(made)
    assert all((after[model] == before[model]).all() for model in before)
    (line,) = caplog.messages
    assert re.fullmatch(rf"device cache: {re.escape(str(file))}: .*damaged.*; it is made again", line)
    caplog.clear()
    answers(made)
    assert not caplog.messages
    assert not list((made.path / "device-cache").glob(".*"))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose hash was computed, in order."""
    names: list[str] = []
    hash_of = sha256_of

    def counted(path: Path) -> str:
        names.append(path.name)
        return hash_of(path)

    monkeypatch.setattr(verified, "sha256_of", counted)
    return names


def test_files_are_read_once_a_boot(made: Bundle, read: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    files = {path.name for path in cache_of(made.path).iterdir()} - {"cache.json", "verified.json"}
    answers(made)
    assert read == []
    (boot := made.path.parent / "boot").write_text("another")
    monkeypatch.setattr(verified, "_BOOT_ID", boot)
    answers(made)
    assert set(read) == files
    answers(made)
    assert len(read) == len(files)
    # A machine that does not know its boots verifies at each start.
    boot.unlink()
    answers(made)
    assert len(read) == 2 * len(files)


def test_a_file_that_was_touched_is_read_again(made: Bundle, read: list[str]) -> None:
    (cache_of(made.path) / "weights.bin").touch()
    answers(made)
    assert "weights.bin" in read


def test_a_record_that_was_damaged_counts_for_nothing(made: Bundle, read: list[str]) -> None:
    record = cache_of(made.path) / "verified.json"
    for text in ("", "[", "[]", "null", "[" * 5000, record.read_text().replace("weights", "others")):
        record.write_text(text)
        read.clear()
        answers(made)
        assert "weights.bin" in read
    record.unlink()
    record.symlink_to(made.path / "manifest.json")
    answers(made)
    assert (made.path / "manifest.json").read_bytes()
    assert open_bundle(made.path).id == made.id


def test_a_program_that_is_refused_is_verified_at_the_next_start(made: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, threads: int, *, prepack: bool) -> ort.InferenceSession:
        raise BackendError(f"{path}: ONNX Runtime refuses it")

    record = cache_of(made.path) / "verified.json"
    assert record.exists()
    with monkeypatch.context() as patch, OrtCpu(made) as backend:
        patch.setattr("gemel.runtime.backends.ort_cpu.open_baked", refuse)
        with pytest.raises(BackendError, match="refuses it"):
            backend.activate("a")
    assert not record.exists()


def test_what_a_killed_baker_leaves_is_removed(bundle: Path, tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from gemel.bundles.reader import open_bundle\n"
        "from gemel.runtime.ort.bake import bake\n"
        "def die(model): model == 'b' and os.kill(os.getpid(), signal.SIGKILL)\n"
        "bake(open_bundle(sys.argv[1]), die)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(bundle)], timeout=120)
    assert done.returncode == -signal.SIGKILL
    (left,) = (bundle / "device-cache").iterdir()
    assert left.name.startswith(".baking-")
    answers(open_bundle(bundle))
    assert not list((bundle / "device-cache").glob(".*"))


def test_leftovers_go_also_where_the_cache_is_whole(made: Bundle) -> None:
    (made.path / "device-cache" / ".baking-ab12_xyz" / "made").mkdir(parents=True)
    answers(made)
    assert not list((made.path / "device-cache").glob(".*"))


def test_a_full_disk_is_named_and_the_next_place_is_used(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """ONNX Runtime says of a file that it cannot write: the model is refused."""
    monkeypatch.setattr(cache, "user_cache_path", lambda name: tmp_path / "cache" / name)
    optimised = open_session

    def refuse(path: Path, options: ort.SessionOptions, **settings: Any) -> ort.InferenceSession:
        if str(bundle) in options.optimized_model_filepath:
            raise BackendError(f"{path}: ONNX Runtime refuses it: graph.cc:5511")
        return optimised(path, options, **settings)

    def no_room(folder: Path, size: int) -> None:
        if bundle in folder.parents:
            raise OSError(errno.ENOSPC, "No space left on device", str(folder))

    monkeypatch.setattr(optimise, "open_session", refuse)
    monkeypatch.setattr(cache, "check_room", no_room)
    answers(open_bundle(bundle))
    (line,) = caplog.messages
    place = tmp_path / "cache" / "gemel"
    assert line == f"device cache: {bundle / 'device-cache'}: No space left on device; it is made in {place}"
    assert not list((bundle / "device-cache").iterdir())
    # A disk with room: the model is to blame.
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setattr(cache, "check_room", durable.check_room)
    with pytest.raises(BackendError, match=r"graph\.cc:5511"):
        OrtCpu(open_bundle(bundle))


def test_no_room_anywhere(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "user_cache_path", lambda name: tmp_path / "cache" / name)

    def full(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(folder / "a9f3"))

    monkeypatch.setattr(durable, "sync_tree", full)
    with pytest.raises(BackendError) as caught:
        OrtCpu(open_bundle(bundle))
    assert str(caught.value) == (
        f"no device cache could be written: {bundle / 'device-cache'}: No space left on device;"
        f" {tmp_path / 'cache' / 'gemel'}: No space left on device"
    )


def mounts() -> bool:
    """Return whether this user may mount a small disk."""
    command = ["unshare", "-Urm", "mount", "-t", "tmpfs", "none", "/tmp"]
    return shutil.which("unshare") is not None and subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.skipif(not mounts(), reason="this user may not mount a small disk")
def test_a_bundle_on_a_full_disk(bundle: Path, tmp_path: Path) -> None:
    (disk := tmp_path / "disk").mkdir()
    size = sum(path.stat().st_blocks * 512 for path in bundle.iterdir())
    script = (
        f"mount -t tmpfs -o size={size + (32 << 10)} none {disk} && cp -r {bundle} {disk}/b &&"
        f" {BIN / 'gemel-run'} {disk}/b --offline --frames 1; echo rc $?; ls -A {disk}/b/device-cache"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = ["unshare", "-Urm", "sh", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.stdout.endswith("rc 0\n"), done.stdout + done.stderr
    assert f"{disk}/b/device-cache: No space left on device; it is made in {tmp_path}/cache/gemel" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.unlink(), "No such file"),
        (lambda path: path.write_bytes(b"12"), r"content is damaged: sha256 is [0-9a-f]{12}\.\.\., "),
        (lambda path: (path.unlink(), path.symlink_to("/etc/hostname")), "is not a plain file"),
    ],
)
def test_verify_once(change: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"1")
    digest = sha256_of(path)
    assert verified.verify_once({path: digest}, tmp_path)
    assert not verified.verify_once({path: digest}, tmp_path)
    change(path)
    with pytest.raises(BundleError, match=message):
        verified.verify_once({path: digest}, tmp_path)
    with pytest.raises(BundleError):
        verified.verify_once({path: digest.replace("a", "b")}, tmp_path)


def test_a_graph_that_takes_gigabytes_is_refused(bundle: Path) -> None:
    """A bundle from elsewhere must not take the memory of the machine; the compiler would not write such a graph."""
    graph = onnx.load(bundle / "a.onnx", load_external_data=False)
    many = numpy_helper.from_array(np.array([5, 1 << 30]), "many")
    graph.graph.initializer.append(many)
    last = graph.graph.node[-1]
    last.output[0] = "before"
    graph.graph.node.extend(
        [
            helper.make_node("ConstantOfShape", ["many"], ["big"]),
            helper.make_node("ReduceMax", ["big"], ["most"], keepdims=0),
            helper.make_node("Add", ["before", "most"], ["logits"]),
        ]
    )
    (bundle / "a.onnx").write_bytes(data := graph.SerializeToString())
    document = json.loads((bundle / "manifest.json").read_text())
    document["files"]["a.onnx"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (bundle / "manifest.json").write_text(json.dumps(document))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Older versions of ONNX Runtime compute constants when they open a file, and refuse it then.
    with pytest.raises(BackendError, match=r"a\.onnx(: ONNX Runtime .* refuses it| does not run once baked): "):
        OrtCpu(open_bundle(bundle))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB


def test_memory_that_making_a_cache_took_is_given_back(made: Bundle, tmp_path: Path) -> None:
    kept: list[bytes] = []

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    def fill(folder: Path) -> None:
        """Free 64 MB between blocks that stay, because of which the C library keeps the pages for later."""
        blocks = [b"x" * (1 << 16) for _ in range(1 << 10)]
        kept.extend(blocks[::16])
        assert resident() > before + (32 << 20)
        (folder / "file").touch()

    before = resident()
    cache.find_or_make([tmp_path / "made" / "cache"], made, lambda folder: cache.plain_size(folder / "file"), fill)
    assert resident() < before + (16 << 20)
