"""Tests of OpenVINO's backends: answers, budget, device cache, models that OpenVINO refuses, and OpenVINO missing."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from int8 import images, int8_bundle
from numpy.typing import NDArray
from onnx import TensorProto, helper

from gemel.bundles.reader import Bundle, open_bundle
from gemel.errors import BackendError, InputError, MissingExtraError
from gemel.runtime import device_cache as cache
from gemel.runtime.backends import open_backend
from gemel.runtime.backends.openvino import OpenVino, OpenVinoFast
from gemel.runtime.backends.ort_cpu import OrtCpu
from gemel.runtime.backends.prepare_apart import prepare_apart
from gemel.runtime.backends.protocol import Backend
from gemel.runtime.memory.loading import Loading
from gemel.runtime.ov import compiled_form, openvino_cpu
from gemel.runtime.run import RunOptions, run_bundle

IMAGES = np.random.default_rng(0).random((2, 3, 32, 32), np.float32)
HAS_OPENVINO = find_spec("openvino") is not None
needs_openvino = pytest.mark.skipif(not HAS_OPENVINO, reason="needs the extra openvino")


@pytest.fixture
def made(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """Return a bundle; the user's cache folder is below ``tmp_path``."""
    monkeypatch.setattr(cache, "user_cache_path", lambda name: tmp_path / "cache" / name)
    return open_bundle(bundle)


def answer(backend: Backend, model: str, images: NDArray[Any] = IMAGES) -> NDArray[Any]:
    backend.activate(model)
    found = backend.run(model, "main", {"image": images})["logits"]
    backend.release(model)
    return found


def change_graph(bundle: Path, *nodes: Any, location: str = "") -> Bundle:
    """Append nodes to the graph of model a, which make ``logits`` of ``before``; perhaps name a file of weights."""
    graph = onnx.load(bundle / "a.onnx", load_external_data=False)
    graph.graph.node[-1].output[0] = "before"
    graph.graph.node.extend(nodes)
    if location:
        tensor = graph.graph.initializer.add(name="more", data_type=TensorProto.FLOAT, dims=[1])
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", "0"), ("length", "4")):
            tensor.external_data.add(key=key, value=value)
    (bundle / "a.onnx").write_bytes(data := graph.SerializeToString())
    document = json.loads((bundle / "manifest.json").read_text())
    document["files"]["a.onnx"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (bundle / "manifest.json").write_text(json.dumps(document))
    return open_bundle(bundle)


@needs_openvino
@pytest.mark.parametrize("number", [1, 2])
def test_answers_are_those_of_the_default_backend(number: int, made: Bundle) -> None:
    with OpenVino(made, threads=1) as ours, OrtCpu(made) as other:
        for model in ("a", "b"):
            found, expected = (answer(backend, model, IMAGES[:number]) for backend in (ours, other))
            assert found.shape == (number, 3)
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@needs_openvino
def test_an_answer_is_not_overwritten_by_the_next(made: Bundle) -> None:
    with OpenVino(made, threads=1) as backend:
        first = answer(backend, "a", IMAGES[:1])
        before = first.copy()
        second = answer(backend, "a", IMAGES[1:])
        assert (first == before).all()
        assert (first != second).any()


@needs_openvino
def test_the_precision_of_each_backend(made: Bundle) -> None:
    with OpenVino(made, threads=1) as exact, OpenVinoFast(made, threads=1) as fast:
        assert exact.folder != fast.folder
        for backend in (exact, fast):
            backend.activate("a")
        ours, free = (backend.arena.programs["a"]["main"] for backend in (exact, fast))
        assert isinstance(ours, openvino_cpu.OvProgram)
        assert isinstance(free, openvino_cpu.OvProgram)
        assert ours.precision == "f32"
        assert free.precision in ("f32", "bf16", "f16")
        np.testing.assert_allclose(answer(fast, "a"), answer(exact, "a"), rtol=0.1, atol=0.1)


@needs_openvino
def test_int8_models(tmp_path: Path) -> None:
    bundle = int8_bundle(tmp_path / "bundle")
    (model, spec), *_ = bundle.manifest.models.items()
    output = spec.stages["main"].outputs[0].name
    outputs = []
    for opener in (OpenVino, OrtCpu):
        with opener(bundle, threads=1) as backend:
            backend.activate(model)
            outputs.append(backend.run(model, "main", images(1))[output])
    scale = np.abs(outputs[1]).max()
    np.testing.assert_allclose(outputs[0] / scale, outputs[1] / scale, atol=0.05)


@needs_openvino
def test_a_model_is_unloaded_where_there_is_no_room_for_the_next(made: Bundle) -> None:
    with OpenVino(made, memory="min", threads=1) as backend:
        for model in ("a", "b", "a"):
            backend.activate(model)
            assert set(backend.arena.programs) == {model}
            backend.release(model)
        assert backend.stats.loads == 3
        assert 0 < backend.stats.peak <= backend.budget < sum(backend.segments.values())
        with pytest.raises(BackendError, match="model 'a', stage 'main': not active"):
            backend.run("a", "main", {"image": IMAGES})
        backend.evict()
        assert not backend.arena.programs
    with pytest.raises(InputError, match="the largest model alone needs"):
        OpenVino(made, memory=10)


@needs_openvino
def test_weights_count_as_in_the_file_and_as_in_the_kernels(made: Bundle) -> None:
    with OpenVino(made, threads=1) as backend:
        for model, size in backend.segments.items():
            file = next(backend.folder.glob(f"{model}.main.*"))
            assert size == file.stat().st_size + made.manifest.models[model].bytes


@needs_openvino
def test_what_is_unloaded_may_leave_the_page_cache(made: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    with OpenVino(made, loading=Loading(cold=True), threads=1) as backend:
        backend.activate("a")
        backend.release("a")
        monkeypatch.setattr(os, "posix_fadvise", lambda _, offset, length, __: told.append((offset, length)))
        backend.evict()
        size = (backend.folder / "a.main.ov").stat().st_size
    assert told == [(0, size)]


@needs_openvino
def test_wrong_inputs_are_one_line(made: Bundle) -> None:
    with OpenVino(made, threads=1) as backend:
        backend.activate("a")
        with pytest.raises(BackendError, match="model a, stage main: ") as caught:
            backend.run("a", "main", {"image": IMAGES[:1, :2]})
        assert "\n" not in str(caught.value)


@needs_openvino
def test_the_cache_is_used_again(made: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared: list[str] = []
    assert not OpenVino.is_prepared(made)
    with OpenVino(made, threads=1, progress=prepared.append) as backend:
        before = answer(backend, "a")
        assert (before == answer(backend, "a")).all()
    assert prepared == ["a", "b"]
    assert OpenVino.is_prepared(made)
    assert not OpenVinoFast.is_prepared(made)
    monkeypatch.setattr(compiled_form, "compile_program", lambda *arguments: pytest.fail("compiled again"))
    with OpenVino(made, threads=2, progress=prepared.append) as backend:
        np.testing.assert_allclose(answer(backend, "a"), before, rtol=1e-5, atol=1e-6)
    assert prepared == ["a", "b"]


@needs_openvino
@pytest.mark.parametrize("damage", ["a bit", "cut", "gone", "record", "another bundle", "a model less"])
def test_a_damaged_cache_is_made_again(damage: str, made: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    with OpenVino(made, threads=1) as backend:
        before, folder = answer(backend, "a"), backend.folder
    file, record = folder / "a.main.ov", folder / "compiled.json"
    if damage == "a bit":
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "gone":
        file.unlink()
    elif damage == "record":
        record.write_text("{")
    elif damage == "another bundle":
        record.write_text(record.read_text().replace(made.id, "0" * 64))
    else:
        document = json.loads(record.read_text())
        del document["models"]["b"]
        record.write_text(json.dumps(document))
    with OpenVino(made, threads=1) as backend:
        assert (answer(backend, "a") == before).all()
    (line,) = caplog.messages
    assert line.startswith(f"device cache: {folder}")
    assert line.endswith("; it is made again")
    caplog.clear()
    OpenVino(made, threads=1).close()
    assert not caplog.messages


@needs_openvino
def test_a_file_that_openvino_does_not_take_is_verified_at_the_next_start(made: Bundle) -> None:
    with OpenVino(made, threads=1) as backend:
        (backend.folder / "a.main.ov").write_bytes(b"nothing")
        record = backend.folder / "verified.json"
        assert record.exists()
        with pytest.raises(BackendError, match=r"a\.main\.ov: OpenVINO .* refuses it: ") as caught:
            backend.activate("a")
        assert "\n" not in str(caught.value)
        assert not record.exists()


@needs_openvino
def test_a_model_that_openvino_refuses_runs_in_onnx_runtime(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    nodes = (
        helper.make_node("Unsqueeze", ["before", "axis"], ["wide"]),
        helper.make_node("GlobalLpPool", ["wide"], ["pooled"]),
        helper.make_node("Squeeze", ["pooled", "axis"], ["logits"]),
        helper.make_node("Constant", [], ["axis"], value=helper.make_tensor("t", TensorProto.INT64, [1], [2])),
    )
    opened = change_graph(bundle, nodes[3], *nodes[:3])
    with OpenVino(opened, threads=1, memory="min") as ours:
        (line,) = caplog.messages
        assert line.startswith("model a runs in ONNX Runtime: ")
        assert "OpenVINO" in line
        assert "\n" not in line
        assert ours.segments["a"] == opened.manifest.models["a"].bytes
        found = {model: answer(ours, model) for model in ("a", "b", "a")}
        assert set(ours.arena.programs) == {"a"}
    assert len(caplog.messages) == 1
    with OrtCpu(opened) as other:
        for model in ("a", "b"):
            np.testing.assert_allclose(found[model], answer(other, model), rtol=1e-4, atol=1e-6)
    # What was refused is known at the next start, and is said there too.
    caplog.clear()
    OpenVino(opened, threads=1).close()
    assert caplog.messages == [line]


@needs_openvino
def test_a_model_that_openvino_cannot_run_runs_in_onnx_runtime(
    made: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = openvino_cpu.OvProgram.run

    def fail_once(self: openvino_cpu.OvProgram, inputs: Any) -> dict[str, NDArray[Any]]:
        monkeypatch.setattr(openvino_cpu.OvProgram, "run", run)
        raise RuntimeError("Exception from src/x.cpp:1:\nno kernel")

    monkeypatch.setattr(openvino_cpu.OvProgram, "run", fail_once)
    with OpenVino(made, threads=1) as ours, OrtCpu(made) as other:
        np.testing.assert_allclose(answer(ours, "a"), answer(other, "a"), rtol=1e-4, atol=1e-6)
    (line,) = caplog.messages
    assert line.endswith("cannot run it: no kernel")


@needs_openvino
@pytest.mark.parametrize("location", ["../secret", "/etc/hostname"])
def test_weights_elsewhere_are_not_read(location: str, bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    (bundle.parent / "secret").write_bytes(bytes(4))
    opened = change_graph(bundle, helper.make_node("Add", ["before", "more"], ["logits"]), location=location)
    with OpenVino(opened, threads=1) as backend:
        assert "lie outside the model's folder" in caplog.messages[0]
        with pytest.raises(BackendError, match="lie outside the model's folder"):
            backend.activate("a")
        assert answer(backend, "b").shape == (2, 3)


@needs_openvino
def test_a_run(made: Bundle) -> None:
    options = RunOptions(backend="openvino", memory="min", offline=True, frames=3, threads=1)
    summary = run_bundle(made, options)
    assert summary.backend == "openvino"
    assert all(query.processed == 3 for query in summary.run.queries.values())


@needs_openvino
def test_a_bundle_is_prepared_in_a_process_of_its_own(made: Bundle, tmp_path: Path) -> None:
    prepare_apart(made, "openvino", lambda: False)
    assert OpenVino.is_prepared(made)


@needs_openvino
def test_the_telemetry_is_off(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from gemel.runtime.ov.openvino_cpu import openvino_version\n"
        "openvino_version()\n"
        "print(sys.modules.get('openvino_telemetry', 0), 'openvino_telemetry.main' in sys.modules)"
    )
    environment = {**os.environ, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("None False\n", "")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["openvino", "openvino-fast", "auto-cpu"])
def test_openvino_is_missing(name: str, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r"pip install '\.\[openvino\]'") as caught:
        open_backend(open_bundle(bundle), name)
    assert "\n" not in str(caught.value)


def test_a_reason_is_the_line_that_says_what_is_wrong() -> None:
    error = RuntimeError("Exception from src/a.cpp:223:\nCheck 'x' failed at b.cpp:3:\n\nNo operator Foo\nmore")
    assert openvino_cpu.reason(error) == "No operator Foo"
    assert openvino_cpu.reason(RuntimeError("Exception from src/a.cpp")) == "Exception from src/a.cpp"
    assert openvino_cpu.reason(RuntimeError()) == "RuntimeError"
