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
from gemel.runtime.ov import compiled_cache, compiled_form, openvino_times
from gemel.runtime.ov.accepted import Acceptance, QueryAgreement, write_acceptance
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
    monkeypatch.setattr(compiled_form, "measure_beside", lambda *arguments: pytest.fail("measured again"))
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


def accept(bundle: Bundle, **agreements: float) -> None:
    """Write into the device cache how much queries agree in bf16 with float32."""
    queries = {name: QueryAgreement(agreement=value, frames=120) for name, value in agreements.items()}
    write_acceptance(bundle, Acceptance(bundle=bundle.id, queries=queries))


def test_bf16_where_it_was_accepted_and_is_faster(
    made: Bundle, measured: Measured, caplog: pytest.LogCaptureFixture
) -> None:
    accept(made, a=0.9, b=0.9876, c=1.0)
    # Model b is measured in float32, and then in bf16. Query a of model a lost too much.
    measured((10, 9.6), (10, 9.8), (10, 5))
    caplog.set_level("INFO", logger="gemel.runtime.backends.auto_cpu")
    with AutoCpu(made, threads=1) as backend, OrtCpu(made, threads=1) as other:
        assert backend.modes == {"a": "bound", "b": "openvino"}
        assert {model: list(queries) for model, queries in backend._compiled.bf16.items()} == {"b": ["b"]}
        assert backend._compiled.copies["b"].packed_ms == 5
        # Eight bits of mantissa: about 1 % of the largest output.
        np.testing.assert_allclose(answer(backend, "b"), answer(other, "b"), atol=0.05)
    said = [each.getMessage() for each in caplog.records if "bf16" in each.getMessage()]
    assert said == ["model b may run in bf16: agreement with float32 b 0.9876 on 120 frames"]
    assert AutoCpu.is_prepared(made)


@pytest.mark.parametrize(
    ("f32", "bf16", "chosen"), [((10, 5), (10, 4.9), "f32"), ((10, 5), (20, 9.0), "bf16"), ((10, 9.6), (10, 9.6), None)]
)
def test_bf16_must_be_faster_than_float32(
    made: Bundle,
    measured: Measured,
    f32: tuple[float, float],
    bf16: tuple[float, float],
    chosen: str | None,
) -> None:
    accept(made, b=1.0)
    measured((10, 10), f32, bf16)
    with AutoCpu(made, threads=1) as backend:
        assert backend.modes["b"] == ("bound" if chosen is None else "openvino")
        assert ("b" in backend._compiled.bf16) == (chosen == "bf16")


def test_a_cache_from_before_bf16_was_accepted_is_not_used(made: Bundle, measured: Measured) -> None:
    measured((10, 10), (10, 10))
    with AutoCpu(made, threads=1) as backend:
        folder = backend.folder
    accept(made, a=1.0, b=0.94, c=1.0)
    assert not AutoCpu.is_prepared(made)
    measured((10, 10), (10, 5), (10, 10))
    with AutoCpu(made, threads=1) as backend:
        assert backend.folder != folder
        assert backend.modes == {"a": "openvino", "b": "bound"}
    # Nothing is accepted any more: the old cache is used again.
    accept(made, a=0.5)
    with AutoCpu(made, threads=1) as backend:
        assert backend.folder == folder


@pytest.mark.parametrize("computes", [True, False])
def test_that_bf16_was_not_measured_is_said_once(
    made: Bundle,
    measured: Measured,
    computes: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(compiled_cache, "computes_in_bf16", lambda: computes)
    measured((10, 10), (10, 10))
    for _ in range(2):
        AutoCpu(made, threads=1).close()
    said = [each.getMessage() for each in caplog.records if "bf16" in each.getMessage()]
    hint = "auto-cpu does not use bf16: its accuracy was not measured"
    assert said == ([f"{hint}; gemel eval {made.path} --accept bf16 does so"] if computes else [])
