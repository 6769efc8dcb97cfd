"""Backends run models whose kernels are computed from codes: right answers, budgets, reloads and damage."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from form_bundles import FORMS, form_workload
from on_devices import Device

from gemel.bundles.blob import tensor_id
from gemel.bundles.kernel_forms import KernelForm
from gemel.bundles.reader import Bundle, open_bundle
from gemel.compiler import compile_workload
from gemel.errors import BundleError
from gemel.runtime.backends import open_backend
from gemel.runtime.backends.ort_cpu import OrtCpu
from gemel.runtime.backends.ort_cuda import OrtCuda
from gemel.runtime.loop.device_profile import measure_profile, profile_after
from gemel.runtime.ort import bake_forms
from gemel.runtime.ort import optimise as ort_optimise
from gemel.runtime.ort.bake_forms import FormBaker

IMAGES = np.random.default_rng(0).random((2, 3, 32, 32), np.float32)


@pytest.fixture
def forms(form_folder: Path) -> Bundle:
    return open_bundle(form_folder / "bundle")


@pytest.fixture(scope="module")
def baked_folder(_shared_form_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle that is baked already."""
    folder = Path(shutil.copytree(_shared_form_bundle, tmp_path_factory.mktemp("baked") / "forms"))
    with OrtCpu(open_bundle(folder / "bundle")):
        pass
    return folder / "bundle"


@pytest.fixture
def baked(baked_folder: Path) -> Bundle:
    return open_bundle(baked_folder)


def expected(bundle: Bundle, model: str) -> Any:
    """Return a model's outputs in plain ONNX Runtime."""
    return ort.InferenceSession(str(bundle.file(f"{model}.onnx"))).run(None, {"image": IMAGES})[0]


def check(bundle: Bundle, backend: Any, model: str) -> None:
    """Swap a model in, run it and compare its outputs with those of plain ONNX Runtime."""
    backend.activate(model)
    images = IMAGES if backend.batch_limit(model) > 1 else IMAGES[:1]
    found = backend.run(model, "main", {"image": images})["logits"]
    np.testing.assert_allclose(found, expected(bundle, model)[: len(images)], rtol=1e-4, atol=1e-5)
    backend.release(model)


def test_outputs_and_kernels(baked: Bundle) -> None:
    with OrtCpu(baked) as backend:
        record = backend.baked
        assert len(record.forms) == len(baked.manifest.forms), "every kernel is kept as codes in the layout of this CPU"
        assert record.models["a"]["main"].program == record.models["b"]["main"].program
        for model in ("a", "b", "a"):
            check(baked, backend, model)
        for model in FORMS:
            backend.activate(model)
        for name in record.forms:
            assert tensor_id(backend.arena.tensor(name)) == name
        # The base is there once.
        bases = {form.base for form in record.forms.values() if form.base is not None}
        assert len(bases) == 2
        assert set(backend.sources) == {name for name in backend.segments if name.startswith("d")}


def test_the_least_budget(baked: Bundle) -> None:
    with OrtCpu(baked, memory="min") as backend:
        assert backend.room == max(sum(backend.segments[each] for each in backend.segments_of(name)) for name in FORMS)
        assert backend.room < sum(backend.segments.values())
        for model in "abab":
            check(baked, backend, model)
        assert 0 < backend.stats.peak <= backend.room
        assert backend.stats.evicted


def test_times_are_measured(baked: Bundle) -> None:
    with OrtCpu(baked, memory="min") as backend:
        found = measure_profile(baked, backend)
        for name, sources in backend.sources.items():
            assert found.segments[name].sources == sources
            assert found.segments[name].load_ms
        after = profile_after(baked, backend, baked, found)
        assert after.segments.keys() == found.segments.keys()


def test_a_reload(baked: Bundle, tmp_path: Path) -> None:
    """A bundle with one new model takes the place of another: what both have stays, and answers are right."""
    workload = form_workload(tmp_path / "second", {**FORMS, "c": FORMS["b"]})
    second = open_bundle(compile_workload(workload, tmp_path / "second" / "bundle").path)
    first = OrtCpu(baked)
    for model in FORMS:
        check(baked, first, model)
    with OrtCpu(second, before=first) as backend:
        backend.take_over(first)
        first.close()
        assert backend.kept_bytes
        for model in "cabc":
            check(second, backend, model)


def test_a_damaged_bundle_is_refused_before_it_is_baked(forms: Bundle) -> None:
    codes = next(iter(forms.manifest.forms.values())).codes
    path = forms.file(forms.manifest.blob)
    data = bytearray(path.read_bytes())
    data[forms.manifest.tensors[codes].offset] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match=r"weights\.bin: content is damaged"):
        OrtCpu(forms)


def test_a_damaged_record_is_made_again(forms: Bundle) -> None:
    with OrtCpu(forms) as backend:
        path = backend.baked.folder / "cache.json"
    path.write_text(path.read_text().replace('"bits": 2', '"bits": 4'))
    with OrtCpu(forms) as backend:
        check(forms, backend, "b")


@pytest.mark.parametrize("problem", ["another program", "no regular order", "no numbers"])
def test_kernels_that_cannot_be_reordered_are_stored(
    forms: Bundle, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if problem == "another program":
        optimise = ort_optimise.optimise

        def other(*arguments: Any) -> Any:
            program, arrays = optimise(*arguments)
            return program.__class__("0" * 32, program.proto, program.weights), arrays

        monkeypatch.setattr(bake_forms, "optimise", other)
    elif problem == "no regular order":
        monkeypatch.setattr(bake_forms, "_blocks", lambda count, channels: [])
    else:
        monkeypatch.setattr(bake_forms, "_MOST", 10)
    with OrtCpu(forms) as backend:
        assert not backend.baked.forms
        assert not backend.sources
        check(forms, backend, "a")


def test_padding_has_a_code_in_kernels_and_bases_of_one_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    codes, base = (rng.choice([-1, 1], (6, 8)).astype(np.int8) for _ in range(2))
    scale, base_scale = (rng.random(6).astype(np.float32) for _ in range(2))
    form, kept = KernelForm(codes, 1, scale, base, base_scale, 1), dict[str, Any]()

    def put(array: Any) -> str:
        kept[tensor_id(array)] = array
        return tensor_id(array)

    class Tensors:
        tensor = kept.__getitem__

    # Four channels are interleaved, and the last two of the second block are padding.
    order = np.full((2, 8, 4), -1)
    for channel in range(6):
        order[channel // 4, :, channel % 4] = channel * 8 + np.arange(8)
    (moved,) = FormBaker(Tensors(), tmp_path)._moved(form.stored(put), order.reshape(-1), order.shape)  # type: ignore[arg-type]
    assert (moved.bits, moved.base_bits, moved.block) == (2, 2, 4)
    assert moved.kernel().tobytes() == np.where(order < 0, np.float32(0), form.kernel().reshape(-1)[order]).tobytes()


@pytest.mark.parametrize("name", ["ort-sessions", "openvino", "auto-cpu"])
def test_backends_with_private_copies(baked: Bundle, name: str) -> None:
    if name != "ort-sessions":
        pytest.importorskip("openvino", reason="needs OpenVINO (the extra openvino)")
    with open_backend(baked, name, memory="all") as backend:
        for model in FORMS:
            check(baked, backend, model)


@pytest.mark.parametrize("unified", [False, True])
def test_on_a_device(baked: Bundle, unified: bool) -> None:
    """Kernels are computed on the host and uploaded; what they are computed from takes no memory of the device."""
    with OrtCuda(baked, Device(unified=unified), memory="min") as backend:
        sources = {tensor for form in baked.manifest.forms.values() for tensor in form.stored}
        held = {tensor for name in backend.segments for tensor in backend.arena._segments[name].tensors}
        assert not held & sources
        assert held >= baked.manifest.forms.keys()
        assert backend.sources == {}
        for model in "abab":
            check(baked, backend, model)
        assert backend.stats.peak <= backend.room


def test_models_that_hold_their_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workload_in: Callable[..., Any]
) -> None:
    monkeypatch.setattr("gemel.compiler.writing.writer.session_mode", lambda model: "constant")
    bundle = open_bundle(compile_workload(form_workload(tmp_path / "w"), tmp_path / "bundle").path)
    assert bundle.manifest.forms
    with OrtCpu(bundle) as backend:
        assert not backend.baked.forms
        for model in FORMS:
            check(bundle, backend, model)
