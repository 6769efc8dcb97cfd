"""The ort-cpu backend: right outputs, one session a program, one baked copy of every weight, a cache that heals."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from helpers import query, save
from tiny_models import TinyTransformer

from gemel.compiler import compile_workload
from gemel.errors import BackendError, BundleError, InputError
from gemel.runtime import bake as bake_module
from gemel.runtime.backends import open_backend
from gemel.runtime.backends.ort_cpu import OrtCpu
from gemel.runtime.bundle import open_bundle
from gemel.workload import Workload

IMAGES = np.random.default_rng(0).random((3, 3, 32, 32), np.float32)


def plain(bundle: Path, model: str) -> np.ndarray:
    session = ort.InferenceSession(str(bundle / f"{model}.onnx"))
    output: np.ndarray = session.run(None, {"image": IMAGES})[0]
    return output


def cache_of(bundle: Path) -> Path:
    (folder,) = (bundle / "device-cache").iterdir()
    return folder


@pytest.fixture
def bundle(bundle_folder: Path) -> Path:
    return bundle_folder / "bundle"


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


def test_budget(bundle: Path) -> None:
    with OrtCpu(open_bundle(bundle), memory="min") as backend:
        for model in ("a", "b", "a"):
            backend.activate(model)
            backend.release(model)
        assert backend.stats.peak <= backend.budget < sum(s.length for s in backend.baked.segments.values())
        assert backend.stats.evicted > 0
    with pytest.raises(InputError, match=r"memory: 10 is 10 bytes; the hungriest model alone needs \d+ bytes"):
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


def test_unknown_backend(bundle: Path) -> None:
    with pytest.raises(BackendError, match="backend 'abacus' is not available; this version has: ort-cpu"):
        open_backend(open_bundle(bundle), "abacus")


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
    monkeypatch.setattr(bake_module, "user_cache_path", lambda name: tmp_path / "cache" / name)
    # A file in the way fails for root too, whom permissions do not stop.
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
    monkeypatch.setattr(bake_module, "user_cache_path", lambda name: tmp_path / "cache" / name)
    (tmp_path / "outside").mkdir()
    (bundle / "device-cache").symlink_to(tmp_path / "outside")
    test_outputs(bundle, 1)
    assert not list((tmp_path / "outside").iterdir())
