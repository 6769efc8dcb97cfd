"""Tests of the ort-cpu backend: outputs, one session per program, one copy of every weight, repair of the cache."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from helpers import query, save, swap_for_a_link, swap_for_a_pipe
from tiny_models import TinyTransformer, tiny

from gemel.bundles.onnx_wire import TensorProto
from gemel.bundles.reader import open_bundle
from gemel.compiler import compile_workload
from gemel.errors import BackendError, BundleError, InputError
from gemel.runtime import device_cache as cache
from gemel.runtime.backends.ort_cpu import OrtCpu
from gemel.runtime.ort import optimise
from gemel.runtime.ort.bake import verify_cache
from gemel.workload import Workload

IMAGES = np.random.default_rng(0).random((3, 3, 32, 32), np.float32)


def plain(bundle: Path, model: str) -> np.ndarray:
    session = ort.InferenceSession(str(bundle / f"{model}.onnx"))
    output: np.ndarray = session.run(None, {"image": IMAGES})[0]
    return output


def cache_of(bundle: Path) -> Path:
    (folder,) = (bundle / "device-cache").iterdir()
    return folder


@pytest.mark.parametrize("batch", [1, 3])
def test_outputs(bundle: Path, batch: int) -> None:
    with OrtCpu(open_bundle(bundle)) as backend:
        for _ in range(2):
            for model in ("a", "b"):
                backend.activate(model)
                outputs = backend.run(model, "main", {"image": IMAGES[:batch]})
                np.testing.assert_allclose(outputs["logits"], plain(bundle, model)[:batch], rtol=1e-4, atol=1e-6)
                backend.release(model)


def test_two_models_of_one_architecture_have_one_session_and_one_copy(bundle: Path) -> None:
    with OrtCpu(open_bundle(bundle)) as backend:
        baked = backend.baked
        assert baked.models["a"]["main"].program == baked.models["b"]["main"].program
        shared = set(baked.models["a"]["main"].weights) & set(baked.models["b"]["main"].weights)
        assert sum(baked.tensors[tensor].length for tensor in shared) >= 4 * (16 * 27 + 32 * 16)
        for model in ("a", "b"):
            backend.activate(model)
        assert len(backend._sessions) == 1


def test_constant_mode(tmp_path: Path, workload_in: Callable[..., Workload]) -> None:
    save(TinyTransformer(), tmp_path / "t.safetensors")
    workload = workload_in(query("t", "tiny_models:TinyTransformer"))
    bundle = compile_workload(workload, tmp_path / "bundle").path
    with OrtCpu(open_bundle(bundle)) as backend:
        backend.activate("t")
        found = backend.run("t", "main", {"image": IMAGES})["logits"]
    np.testing.assert_allclose(found, plain(bundle, "t"), rtol=1e-4, atol=1e-5)


def test_private_copies_of_constant_models_count(tmp_path: Path, workload_in: Callable[..., Workload]) -> None:
    save(TinyTransformer(), tmp_path / "t.safetensors")
    save(tiny(0), tmp_path / "a.safetensors")
    workload = workload_in(query("t", "tiny_models:TinyTransformer"), query("a"))
    opened = open_bundle(compile_workload(workload, tmp_path / "bundle").path)
    with OrtCpu(opened) as backend:
        segments = backend.baked.segments
        (of_t,) = [name for name, spec in segments.items() if spec.models == ("t",)]
        (of_a,) = [name for name, spec in segments.items() if spec.models == ("a",)]
        sizes = {name: spec.length for name, spec in segments.items()}
        taken = backend.segments
        assert backend.private_bytes == 0
        backend.activate("t")
        assert not backend.arena.residents
        copies = backend.private_bytes
        assert sizes[of_t] - 64 * len(segments[of_t].tensors) <= copies <= sizes[of_t]
        backend.release("t")
        backend.activate("a")
        assert list(backend.arena.residents) == [of_a]
        assert backend.budget == backend.stats.peak == copies + taken[of_a]
    with OrtCpu(opened, memory="min") as backend:
        assert backend.arena.budget == taken[of_a]
    needed = copies + taken[of_a]
    with pytest.raises(InputError, match=f"{needed} bytes are needed, of which {copies} stay loaded"):
        OrtCpu(opened, memory=needed - 1)


def test_a_model_that_cannot_be_bound_holds_no_memory(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with OrtCpu(open_bundle(bundle), memory="min") as backend:
        bind = backend._bind
        monkeypatch.setattr(backend, "_bind", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            backend.activate("a")
        monkeypatch.setattr(backend, "_bind", bind)
        with pytest.raises(BackendError, match="not active"):
            backend.run("a", "main", {"image": IMAGES})
        backend.activate("b")  # does not fit beside a
        backend.run("b", "main", {"image": IMAGES})


def test_budget(bundle: Path) -> None:
    with OrtCpu(open_bundle(bundle), memory="min") as backend:
        for model in ("a", "b", "a"):
            backend.activate(model)
            backend.release(model)
        assert backend.stats.peak <= backend.budget < sum(backend.segments.values())
        assert backend.stats.evicted > 0
    with pytest.raises(InputError, match=r"memory: 10 is 10 bytes; the largest model alone needs \d+ bytes"):
        OrtCpu(open_bundle(bundle), memory=10)


def test_running_what_is_not_active(bundle: Path) -> None:
    with (
        OrtCpu(open_bundle(bundle)) as backend,
        pytest.raises(BackendError, match="model 'a', stage 'main': not active"),
    ):
        backend.run("a", "main", {"image": IMAGES})


def test_a_wrong_input_names_the_model(bundle: Path) -> None:
    with OrtCpu(open_bundle(bundle)) as backend:
        backend.activate("a")
        with pytest.raises(BackendError, match=r"model a, stage main: .*invalid dimensions"):
            backend.run("a", "main", {"image": IMAGES[:, :, :8]})
        assert backend.run("a", "main", {"image": IMAGES})["logits"].shape == (3, 3)


def test_the_cache_is_made_once_and_again_when_damaged(bundle: Path) -> None:
    baked: list[str] = []
    OrtCpu(open_bundle(bundle), progress=baked.append).close()
    assert baked == ["a", "b"]
    OrtCpu(open_bundle(bundle), progress=baked.append).close()
    assert baked == ["a", "b"]
    blob = cache_of(bundle) / "weights.bin"
    blob.write_bytes(blob.read_bytes()[:4096])
    test_outputs(bundle, 1)
    (cache_of(bundle) / "cache.json").write_text("{")
    test_outputs(bundle, 1)
    assert [path.name for path in (bundle / "device-cache").iterdir()] == [cache_of(bundle).name]


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)


@pytest.mark.parametrize("harm", [Path.unlink, swap_for_a_pipe, swap_for_a_link, lambda path: path.write_bytes(b"x")])
@pytest.mark.parametrize("suffix", [".bin", ".json", ".onnx"])
def test_a_cache_with_a_bad_file_is_made_again(bundle: Path, harm: Callable[[Path], None], suffix: str) -> None:
    opened = open_bundle(bundle)
    assert verify_cache(opened) == []
    OrtCpu(opened).close()
    assert verify_cache(opened) == [cache_of(bundle)]
    file = next(path for path in cache_of(bundle).iterdir() if path.suffix == suffix)
    harm(file)
    with pytest.raises(BundleError, match=rf"{re.escape(file.name)}: .*; delete the folder {cache_of(bundle)}"):
        verify_cache(opened)
    test_outputs(bundle, 1)
    assert verify_cache(opened) == [cache_of(bundle)]


@pytest.mark.parametrize("suffix", [".bin", ".onnx"])
def test_changed_bytes_are_found_by_their_hash(bundle: Path, suffix: str) -> None:
    opened = open_bundle(bundle)
    OrtCpu(opened).close()
    file = next(path for path in cache_of(bundle).iterdir() if path.suffix == suffix)
    damage(file)
    with pytest.raises(BundleError, match=f"{re.escape(file.name)}: content is damaged; delete the folder"):
        verify_cache(opened)


def test_the_slower_of_two_bakers_keeps_what_the_other_uses(bundle: Path) -> None:
    opened = open_bundle(bundle)
    others: list[tuple[OrtCpu, int]] = []

    def meanwhile(model: str) -> None:
        """Bake the whole bundle while the other baker is at its first model."""
        if not others:
            other = OrtCpu(opened)
            others.append((other, other.baked.folder.stat().st_ino))

    OrtCpu(opened, progress=meanwhile).close()
    quick, inode = others[0]
    assert cache_of(bundle).stat().st_ino == inode
    for model in ("a", "b"):
        quick.activate(model)
        found = quick.run(model, "main", {"image": IMAGES})["logits"]
        np.testing.assert_allclose(found, plain(bundle, model), rtol=1e-4, atol=1e-6)
    assert [path.name for path in (bundle / "device-cache").iterdir()] == [cache_of(bundle).name]


def test_weights_that_were_not_written_are_not_zeros() -> None:
    tensor = TensorProto(name="w", data_type=1, dims=[2], data_location=1)
    tensor.external_data.add(key="length", value="8")
    for data in (None, np.zeros(4, np.uint8)):
        with pytest.raises(BackendError, match="weight w: ONNX Runtime did not write its values"):
            optimise._values(tensor, data)


def test_no_place_for_the_cache(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "user_cache_path", lambda name: tmp_path / "cache" / name)
    (tmp_path / "cache").touch()
    (tmp_path / "outside").mkdir()
    (bundle / "device-cache").symlink_to(tmp_path / "outside")
    with pytest.raises(BackendError, match=r"no device cache .*device-cache: is a link; .*gemel: Not a directory"):
        OrtCpu(open_bundle(bundle))


def test_a_damaged_bundle_is_not_baked(bundle: Path) -> None:
    blob = bundle / "weights.bin"
    data = bytearray(blob.read_bytes())
    data[64] ^= 255
    blob.write_bytes(data)
    with pytest.raises(BundleError, match=r"weights\.bin: content is damaged"):
        OrtCpu(open_bundle(bundle))
    assert not (bundle / "device-cache").exists()


def test_a_bundle_that_cannot_be_written_is_baked_in_the_users_cache(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "user_cache_path", lambda name: tmp_path / "cache" / name)
    # A file in place of the folder: permissions would not stop root.
    (bundle / "device-cache").touch()
    test_outputs(bundle, 1)
    assert len(list((tmp_path / "cache" / "gemel").iterdir())) == 1


def test_another_device_or_version_has_another_cache(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    OrtCpu(open_bundle(bundle)).close()
    monkeypatch.setattr("onnxruntime.__version__", "99.0")
    OrtCpu(open_bundle(bundle)).close()
    assert len(list((bundle / "device-cache").iterdir())) == 2


def test_a_copied_bundle_brings_its_cache(bundle: Path, tmp_path: Path) -> None:
    OrtCpu(open_bundle(bundle)).close()
    copied = Path(shutil.copytree(bundle, tmp_path / "elsewhere"))
    baked: list[str] = []
    OrtCpu(open_bundle(copied), progress=baked.append).close()
    assert baked == []


def test_a_cache_that_is_a_link_is_not_used(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "user_cache_path", lambda name: tmp_path / "cache" / name)
    (tmp_path / "outside").mkdir()
    (bundle / "device-cache").symlink_to(tmp_path / "outside")
    test_outputs(bundle, 1)
    assert not list((tmp_path / "outside").iterdir())
