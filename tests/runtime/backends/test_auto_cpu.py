"""Tests of auto-cpu: each model runs in ONNX Runtime or OpenVINO, as measured, and as far as memory has room."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from int8 import images, int8_bundle
from numpy.typing import NDArray

from gemel.bundles.reader import Bundle, open_bundle
from gemel.errors import BackendError
from gemel.runtime import device_cache as cache
from gemel.runtime.backends.auto_cpu import AutoCpu
from gemel.runtime.backends.ort_cpu import OrtCpu
from gemel.runtime.backends.protocol import Backend
from gemel.runtime.ort import copy_times
from gemel.runtime.ov import compiled_cache, openvino_times
from gemel.runtime.run import RunOptions, run_bundle

IMAGES = np.random.default_rng(0).random((2, 3, 32, 32), np.float32)
pytestmark = pytest.mark.skipif(find_spec("openvino") is None, reason="needs the extra openvino")

Measured = Callable[..., None]


@pytest.fixture
def made(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """Return a bundle; the user's cache folder is below ``tmp_path``."""
    monkeypatch.setattr(cache, "user_cache_path", lambda name: tmp_path / "cache" / name)
    return open_bundle(bundle)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Measured:
    """Return a function that sets what measurements say: (ms bound, ms in OpenVINO) of one model after the other."""

    def set_times(*times: tuple[float, float]) -> None:
        left = list(times)
        monkeypatch.setattr(openvino_times, "cpu_times", lambda runs: list(left.pop(0)))

    return set_times


def answer(backend: Backend, model: str) -> NDArray[Any]:
    backend.activate(model)
    found = backend.run(model, "main", {"image": IMAGES})["logits"]
    backend.release(model)
    return found


def test_the_faster_one_runs(made: Bundle, measured: Measured) -> None:
    measured((10, 9.6), (10, 5))
    with AutoCpu(made, threads=1) as backend, OrtCpu(made, threads=1) as other:
        assert backend.modes == {"a": "bound", "b": "openvino"}
        # OpenVINO's programs take one image.
        assert backend.batch_limit("a") == other.batch_limit("a") > 8 and backend.batch_limit("b") == 1
        assert backend.segments_of("a")
        assert backend.segments_of("b") == ()
        assert backend.private_bytes == 0
        for model in ("a", "b", "a"):
            np.testing.assert_allclose(answer(backend, model), answer(other, model), rtol=1e-4, atol=1e-6)
        file = backend.folder / "b.main.ov"
        assert backend.private_bytes == file.stat().st_size + made.manifest.models["b"].bytes
        assert backend.budget - backend.room == backend.private_bytes
        assert backend.stats.peak <= backend.budget
        assert [path.name for path in backend.folder.glob("*.ov")] == ["b.main.ov"]
        assert backend._compiled.left_out == {"a": "9.6 ms in OpenVINO, 10 ms bound in ONNX Runtime"}
        assert other.modes == {"a": "bound", "b": "bound"}


def test_times_are_measured_once(made: Bundle, measured: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not AutoCpu.is_prepared(made)
    measured((10, 5), (10, 5))
    AutoCpu(made, threads=1).close()
    assert AutoCpu.is_prepared(made)
    monkeypatch.setattr(compiled_cache, "measure_beside", lambda *arguments: pytest.fail("measured again"))
    with AutoCpu(made, threads=1) as backend:
        assert set(backend.modes.values()) == {"openvino"}


def test_shared_weights_where_memory_has_no_room(made: Bundle, measured: Measured) -> None:
    measured((10, 5), (10, 5))
    with AutoCpu(made, memory="min", threads=1) as backend, OrtCpu(made, memory="min", threads=1) as other:
        assert backend.modes == {"a": "bound", "b": "bound"}
        assert backend.budget == other.budget
        assert answer(backend, "a").shape == (2, 3)


def test_real_times(made: Bundle) -> None:
    with AutoCpu(made, threads=1) as backend, OrtCpu(made, threads=1) as other:
        assert set(backend._compiled.copies) | set(backend._compiled.left_out) == {"a", "b"}
        for model in ("a", "b"):
            np.testing.assert_allclose(answer(backend, model), answer(other, model), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("openvino_ms", [1, 9])
def test_int8_models_run_in_the_fastest_of_three(
    openvino_ms: float, tmp_path: Path, measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = int8_bundle(tmp_path / "bundle")
    monkeypatch.setattr(copy_times, "cpu_times", lambda runs: [10.0, 5.0])
    measured(*[(10, openvino_ms)] * len(bundle.manifest.models))
    with AutoCpu(bundle, threads=1) as backend:
        int8 = [name for name, model in bundle.manifest.models.items() if model.precision == "int8"]
        assert int8
        assert {backend.modes[name] for name in int8} == {"openvino" if openvino_ms == 1 else "packed"}
        output = bundle.manifest.models[int8[0]].stages["main"].outputs[0].name
        backend.activate(int8[0])
        assert np.isfinite(backend.run(int8[0], "main", images(1))[output]).all()


def test_a_file_that_openvino_does_not_take_is_verified_at_the_next_start(made: Bundle, measured: Measured) -> None:
    measured((10, 5), (10, 5))
    with AutoCpu(made, threads=1) as backend:
        (backend.folder / "a.main.ov").write_bytes(b"nothing")
        with pytest.raises(BackendError, match=r"a\.main\.ov: OpenVINO .* refuses it: "):
            backend.activate("a")
        assert not (backend.folder / "verified.json").exists()
        assert backend.private_bytes == 0


def test_a_run(made: Bundle, measured: Measured) -> None:
    measured((10, 5), (10, 10))
    summary = run_bundle(made, RunOptions(backend="auto-cpu", offline=True, frames=3, threads=1))
    assert summary.backend == "auto-cpu"
    assert all(query.processed == 3 for query in summary.run.queries.values())
