"""Tests of int8 and fp16 models on the ort-cpu backend: both modes give the right outputs within the budget."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from int8 import CHANNELS, Array, Drawing, images, int8_bundle, network, write_bundle
from onnx import TensorProto

from gemel.bundles.blob import footprint
from gemel.bundles.onnx_wire import tensor_array
from gemel.bundles.program import read_model
from gemel.bundles.reader import Bundle
from gemel.errors import BackendError, BundleError, InputError
from gemel.runtime.backends.ort_cpu import OrtCpu
from gemel.runtime.loop.device_profile import kept_at, profile_of
from gemel.runtime.memory.loading import WARM
from gemel.runtime.ort import copy_times
from gemel.runtime.ort.bake import verify_cache
from gemel.runtime.ort.cpu_fp32 import to_fp32

WIDE = CHANNELS * CHANNELS * 9


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return int8_bundle(tmp_path / "bundle")


@pytest.fixture(params=["bound", "packed"])
def faster(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Mode that measurements find faster, whatever the machine does."""
    mode = str(request.param)
    monkeypatch.setattr(copy_times, "cpu_times", lambda runs: [2.0, 1.0] if mode == "packed" else [1.0, 2.0])
    return mode


def prefer(monkeypatch: pytest.MonkeyPatch, *times: float) -> None:
    """Make measurements return these milliseconds: bound and packed, for one model after the other."""
    left = list(times)
    monkeypatch.setattr(copy_times, "cpu_times", lambda runs: [left.pop(0) for _ in runs])


def answer(model: onnx.ModelProto, inputs: dict[str, Array]) -> Array:
    """Run a model with ONNX Runtime's optimisations off."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    output: Array = ort.InferenceSession(model.SerializeToString(), options).run(None, inputs)[0]
    return output


def unrounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """Convert an int8 model to fp32: kernels times scales, and activations that are not rounded."""
    return onnx.load_from_string(to_fp32(read_model(model.SerializeToString()), tensor_array).SerializeToString())


def difference(found: Array, expected: Array) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def run_all(backend: OrtCpu, batch: int = 2) -> dict[str, Array]:
    found = {}
    for model in ("a", "b", "a"):
        backend.activate(model)
        found[model] = backend.run(model, "main", images(batch))["out"]
        backend.release(model)
    return found


@pytest.mark.parametrize("batch", [1, 3])
def test_answers(bundle: Bundle, faster: str, batch: int) -> None:
    with OrtCpu(bundle) as backend:
        assert backend.modes == {"a": faster, "b": faster}
        found = run_all(backend, batch)
    for scales, model in enumerate("ab"):
        if faster == "bound":
            assert difference(found[model], answer(unrounded(network(scales)), images(batch))) < 1e-5
        else:
            assert difference(found[model], answer(network(scales), images(batch))) < 0.03


def test_a_kernel_with_two_scales_is_one_tensor_in_float32(bundle: Bundle, faster: str) -> None:
    with OrtCpu(bundle) as backend:
        baked = backend.baked
    one, other = (baked.models[model]["main"] for model in "ab")
    assert one.program == other.program
    shared = {*one.weights} & {*other.weights}
    wide = [tensor for tensor, spec in baked.tensors.items() if spec.length == 4 * WIDE]
    assert len(wide) == 1
    assert {*wide} <= shared
    operators = {node.op_type for node in read_model(baked.program(one.program).read_bytes()).graph.node}
    assert not operators & {"QuantizeLinear", "DequantizeLinear", "Identity", "Cast"}


def test_packed_graphs_compute_in_int8_and_hold_their_weights(bundle: Bundle, faster: str) -> None:
    with OrtCpu(bundle) as backend:
        baked = backend.baked
    for model in "ab":
        graph = read_model(baked.packed(model, "main").read_bytes()).graph
        assert "QLinearConv" in {node.op_type for node in graph.node}
        assert not any(tensor.data_location for tensor in graph.initializer)
        held = sum(tensor_array(tensor).nbytes for tensor in graph.initializer)
        assert WIDE < held == baked.packings[model].bytes < 1.5 * WIDE


def test_memory_when_packed_is_faster(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    prefer(monkeypatch, 2, 1, 3, 1)
    with OrtCpu(bundle) as backend:
        copies = {model: packing.bytes for model, packing in backend.baked.packings.items()}
        segments = {name: footprint(spec.length) for name, spec in backend.baked.segments.items()}
        assert (dict(backend.segments), backend.room, backend.private_bytes) == ({}, 0, 0)
        run_all(backend)
        assert backend.private_bytes == backend.stats.peak == backend.budget == sum(copies.values())
        backend.unbind("a")
        run_all(backend)
    assert copies["a"] == copies["b"]
    needs = sum(segments.values()) - min(segments.values())
    # The smallest budget holds two private copies. One copy beside a bound model would take more.
    assert 2 * copies["a"] < needs
    with OrtCpu(bundle, memory="min") as backend:
        assert (backend.budget, {*backend.modes.values()}) == (2 * copies["a"], {"packed"})
    with pytest.raises(InputError, match=f"{2 * copies['a']} bytes are needed, of which {2 * copies['a']} stay loaded"):
        OrtCpu(bundle, memory=2 * copies["a"] - 1)


def test_memory_when_packed_is_slower(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    prefer(monkeypatch, 1, 2, 1, 3)
    with OrtCpu(bundle) as backend:
        needed = max(sum(backend.segments[name] for name in backend.segments_of(model)) for model in "ab")
        assert (backend.budget, backend.private_bytes) == (sum(backend.segments.values()), 0)
    with OrtCpu(bundle, memory=needed) as backend:
        assert backend.modes == {"a": "bound", "b": "bound"}
        run_all(backend)
        assert backend.stats.peak == backend.budget == needed
        assert backend.stats.evicted > 0
    with OrtCpu(bundle, memory=needed - 1) as backend:
        assert backend.modes == {"a": "packed", "b": "packed"}
        run_all(backend)
        assert backend.stats.peak <= backend.budget == needed - 1


def test_one_of_each(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    prefer(monkeypatch, 2, 1, 1, 2)
    with OrtCpu(bundle) as backend:
        assert backend.modes == {"a": "packed", "b": "bound"}
        assert {*backend.segments} == {*backend.segments_of("b")} == {*backend.baked.segments_of["b"]}
        assert backend.segments_of("a") == ()
        found = run_all(backend)
        backend.activate("b")
        assert backend.stats.peak == backend.budget == backend.private_bytes + sum(backend.segments.values())
        backend.release("b")
        # A profile counts segments only, so its budget is what the private copies leave for them.
        assert profile_of(bundle, backend).budget() == backend.room == backend.budget - backend.private_bytes
    assert difference(found["a"], answer(network(0), images(2))) < 0.03
    assert difference(found["b"], answer(unrounded(network(1)), images(2))) < 1e-5


def test_times_are_measured_once(bundle: Bundle) -> None:
    with OrtCpu(bundle) as backend:
        packings = backend.baked.packings
        assert all(packing.bound_ms > 0 and packing.packed_ms > 0 for packing in packings.values())
    with OrtCpu(bundle) as backend:
        assert backend.baked.packings == packings


@pytest.mark.parametrize("what", ["a.main.int8.onnx", "packings", "copies"])
def test_a_damaged_cache_is_found_and_made_again(bundle: Bundle, what: str) -> None:
    with OrtCpu(bundle) as backend:
        folder = backend.folder
    assert verify_cache(bundle) == [folder]
    if what.endswith(".onnx"):
        data = bytearray((folder / what).read_bytes())
        data[len(data) // 2] ^= 255
        (folder / what).write_bytes(data)
        with pytest.raises(BundleError, match=f"{what}: content is damaged; delete the folder"):
            verify_cache(bundle)
        (folder / what).unlink()
    else:
        record = (folder / "cache.json").read_text()
        (folder / "cache.json").write_text(record.replace(f'"{what}"', f'"{what}": {{}}, "other"'))
    with pytest.raises(BundleError, match="delete the folder"):
        verify_cache(bundle)
    with OrtCpu(bundle) as backend:
        run_all(backend)
    assert verify_cache(bundle) == [folder]


def test_a_manifest_with_other_weights_than_the_graph(bundle: Bundle) -> None:
    model = bundle.manifest.models["a"]
    stage = model.stages["main"].model_copy(update={"weights": model.stages["main"].weights[1:]})
    bundle.manifest.models["a"] = model.model_copy(update={"stages": {"main": stage}})
    with pytest.raises(BackendError, match=r"a\.onnx: has \d weights, the manifest says \d"):
        OrtCpu(bundle)


def test_a_profile_is_of_the_modes_that_it_was_measured_in(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    prefer(monkeypatch, 1, 2, 1, 3)
    measured: list[str] = []
    with OrtCpu(bundle, memory="all", loading=WARM) as bound, OrtCpu(bundle, memory="min") as packed:
        for backend in (bound, packed, bound, bound):
            profile = profile_of(bundle, backend, progress=measured.append)
            assert {*profile.segments} == {*backend.segments}
            measured.append(kept_at(backend).read_text())
    one, other, again, kept = (text for text in measured if text.startswith("{"))
    assert len({one, other, again}) == 3
    assert again == kept


def in_halves(seed: int, kernel: Array) -> onnx.ModelProto:
    draw = Drawing(seed)
    value = draw.node("Cast", "image", to=TensorProto.FLOAT16)
    value = draw.node("Conv", value, draw.constant(kernel.astype(np.float16)))
    norm = [draw.constant(draw.random.uniform(0.5, 1, shape).astype(np.float16)) for shape in ((8, 1, 1, 1), (8,))]
    value = draw.node("Relu", draw.node("Conv", value, *norm, group=8))
    value = draw.node("Flatten", draw.node("GlobalAveragePool", value))
    return draw.model(draw.node("Cast", value, to=TensorProto.FLOAT))


def test_halves_run_in_float32_and_go_on_sharing(tmp_path: Path) -> None:
    kernel = np.random.default_rng(0).normal(0, 0.3, (8, 3, 3, 3))
    models = {name: in_halves(seed, kernel) for seed, name in enumerate("ab")}
    expected = {name: answer(model, images(2)) for name, model in models.items()}
    bundle = write_bundle(tmp_path / "bundle", {name: ("fp16", model) for name, model in models.items()})
    with OrtCpu(bundle) as backend:
        assert backend.modes == {"a": "bound", "b": "bound"}
        for name, found in run_all(backend).items():
            assert difference(found, expected[name]) < 3e-3
        one, other = ({*backend.baked.models[name]["main"].weights} for name in "ab")
        assert len(one & other) == 1
        assert {spec.dtype for spec in backend.baked.tensors.values()} == {"float32"}
    assert verify_cache(bundle) == [backend.folder]
