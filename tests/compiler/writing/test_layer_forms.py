"""Workloads whose merge keeps kernels as codes: comparison with the weights, and the bundle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from form_bundles import FORMS, FORMS_FILE, Kept, form_workload, kept_state, write_forms
from helpers import edit_json, save
from onnx_graphs import N, weight, write_graph
from rich.console import Console
from safetensors.numpy import load_file, save_file
from tiny_models import tiny

from gemel.bundles.codes import unpack_codes
from gemel.bundles.reader import open_bundle
from gemel.check.contents.inspect import describe, least_memory
from gemel.check.contents.inspect_tables import bundle_tables
from gemel.compiler import compile_workload
from gemel.errors import SharingLostError, WorkloadError
from gemel.workload import Workload, load_workload

IMAGES = np.random.default_rng(0).random((2, 3, 32, 32), np.float32)


def compiled(workload: Workload, to: str = "bundle") -> tuple[Any, list[str]]:
    lines: list[str] = []
    made = compile_workload(workload, workload.root / to, lambda name, what: lines.append(f"{name}: {what}"))
    return made, lines


def outputs(bundle: Path, model: str, images: Any = IMAGES) -> Any:
    return ort.InferenceSession(str(bundle / f"{model}.onnx")).run(None, {"image": images})[0]


def test_the_models_compute_what_they_did(form_folder: Path) -> None:
    edit_json(form_folder / "merge.json", lambda report: report.pop("forms"))
    plain, lines = compiled(load_workload(form_folder / "workload.yaml"), "plain")
    assert plain.forms is None
    assert not [line for line in lines if line.startswith("forms")]
    content, before = open_bundle(form_folder / "bundle").manifest, plain.manifest
    for model in FORMS:
        np.testing.assert_allclose(
            outputs(form_folder / "bundle", model), outputs(plain.path, model), rtol=1e-5, atol=1e-6
        )
        stages = [each.models[model].stages["main"] for each in (content, before)]
        assert stages[0].program == stages[1].program
        assert content.models[model].bytes == before.models[model].bytes


def test_bytes_are_counted_and_shown(tmp_path: Path) -> None:
    made, lines = compiled(form_workload(tmp_path))
    found, content = made.forms, made.manifest
    assert (found.layers, len(content.forms)) == (6, 6)
    assert found.plain == sum(map(content.bytes_of, content.forms))
    sources = {tensor for form in content.forms.values() for tensor in form.stored}
    assert found.stored == sum(content.tensors[tensor].length for tensor in sources)
    assert found.bases == sum(
        content.tensors[tensor].length
        for tensor in {tensor for form in content.forms.values() for tensor in (form.base, form.base_scale)} - {None}
    )
    assert [line for line in lines if line.startswith("forms")] == [
        "forms: 6 layers of 0.0 MB are kept as 0.0 MB, 0.0 MB of them bases"
    ]
    bundle = open_bundle(made.path)
    figures = describe(bundle)
    assert {form: each["weights"] for form, each in figures["forms"].items()} == {
        "own": len({w for m in content.models.values() for w in m.stages["main"].weights} - content.forms.keys()),
        "coded": 2,
        "difference": 4,
        "base": 2,
    }
    assert sum(each["bytes"] for each in figures["forms"].values()) == figures["bytes"]["unique"]
    held = sum(each["memory_bytes"] for form, each in figures["forms"].items() if form != "base")
    assert held == figures["bytes"]["models"]
    assert least_memory(bundle) > max(model.bytes for model in content.models.values())
    with Console(record=True, width=200) as console:
        for table in bundle_tables(bundle, figures):
            console.print(table)
    assert "difference" in console.export_text()


def test_folded_layers_have_a_gain(form_folder: Path) -> None:
    forms = open_bundle(form_folder / "bundle").manifest.forms.values()
    # A coded kernel has its gain in the scale.
    assert all((form.gain is None) == (form.base is None) for form in forms)


def test_other_weights_are_refused(tmp_path: Path) -> None:
    workload = form_workload(tmp_path)
    save(tiny(5, width=24), tmp_path / "b.safetensors")
    with pytest.raises(
        SharingLostError, match=r"stem\.weight of b is kept as codes; the weights of b differ.*--resume"
    ):
        compiled(workload)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda tensors: tensors.update({"3.codes": tensors["3.codes"][:-1]}),
            r"stem.weight of b: 3.codes: 161 bytes; 162",
        ),
        (lambda tensors: tensors["3.codes"].__setitem__(0, 0b10), "stem.weight of b: 3.codes: -2 is no code of 2 bits"),
        (lambda tensors: tensors.pop("3.scale"), "stem.weight of b: tensor '3.scale' is missing"),
        (lambda tensors: tensors["3.scale"].__setitem__(0, np.nan), "3.scale: 24 finite float32 values are expected"),
        (lambda tensors: tensors.update({"3.scale": tensors["3.scale"][1:]}), "3.scale: 24 finite float32 values"),
        (lambda tensors: tensors.pop("100.scale"), "stem.weight of a: tensor '100.scale' is missing"),
        (
            lambda tensors: tensors.update({"100.scale": tensors["100.scale"][1:]}),
            "100.scale: 24 finite float32 values",
        ),
        (lambda tensors: tensors["100.codes"].__setitem__(0, 0x80), "100.codes: -128 is no code of 8 bits"),
        (
            lambda tensors: tensors.update({"100.scale": tensors["100.scale"].astype(np.float64)}),
            "stem.weight of a: 100.scale: 24 finite float32 values",
        ),
        (lambda tensors: tensors.update({"3.codes": tensors["3.codes"].astype(np.int32)}), "3.codes: Cannot cast"),
        (
            lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith("base.")],
            r"of a: base\.[0-9a-f]{32} is missing, or is no float32 array",
        ),
    ],
)
def test_a_damaged_file_is_refused(form_folder: Path, edit: Callable[[Any], object], message: str) -> None:
    tensors = load_file(form_folder / FORMS_FILE)
    edit(tensors)
    save_file(tensors, form_folder / FORMS_FILE)
    with pytest.raises(WorkloadError, match=message):
        compiled(load_workload(form_folder / "workload.yaml"))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda forms: forms["layers"][0].update(model="z"), "forms: model z is not in the workload"),
        (lambda forms: forms["layers"].append(forms["layers"][0]), "stem.weight of a is there twice"),
        (lambda forms: forms["layers"][1].update(kind="coded"), r"kind coded with base base\.\w+ and base_index None"),
        (lambda forms: forms["layers"][0].update(kind="coded"), "kind coded with base None and base_index 100"),
        (
            lambda forms: forms["layers"][0].update(base_index=None),
            "kind difference with base None and base_index None",
        ),
        (lambda forms: forms["layers"][1].update(base_index=100), r"with base base\.\w+ and base_index 100"),
        (lambda forms: forms["layers"][0].update(base_index=99), "stem.weight of a: tensor '99.codes' is missing"),
        (lambda forms: forms.update(file="../out.safetensors"), "forms.file: .*is not a plain file name"),
        (lambda forms: forms.update(file="gone.safetensors"), r"gone\.safetensors: cannot be read"),
        (lambda forms: forms["layers"][0].update(bits=3), "bits: Input should be 1, 2, 4 or 8"),
    ],
)
def test_a_wrong_entry_is_refused(form_folder: Path, edit: Callable[[Any], object], message: str) -> None:
    edit_json(form_folder / "merge.json", lambda report: edit(report["forms"]))
    with pytest.raises(WorkloadError, match=message):
        compiled(load_workload(form_folder / "workload.yaml"))


def test_a_base_may_be_a_models_own_parameter(tmp_path: Path, workload_in: Callable[..., Workload]) -> None:
    shape = (16, 3, 3, 3)
    arrays = {name: weight("w", *shape, seed=seed) for seed, name in enumerate("ab")}
    states = {name: {"w": np.frombuffer(array.raw_data, np.float32).reshape(shape)} for name, array in arrays.items()}
    made, tensors, layers = kept_state(states, {"b": {"w": Kept(2, True)}})
    (base,) = (name for name in tensors if name.startswith("base."))
    graph_of(tmp_path, "a", tensors.pop(base))
    graph_of(tmp_path, "b", made["b"]["w"])
    write_forms(tmp_path, ("a", "b"), tensors, layers)
    made_bundle, _ = compiled(workload_in(onnx_query("a"), onnx_query("b")))
    (form,) = made_bundle.manifest.forms.values()
    assert form.base in made_bundle.manifest.models["a"].stages["main"].weights
    assert form.base == base.removeprefix("base.")


def test_a_base_that_a_layer_holds_is_stored_once(tmp_path: Path) -> None:
    """The BatchNorm behind that layer is kept apart."""
    workload = form_workload(tmp_path, {"a": {}, "b": {"pointwise.weight": Kept(2, True)}})
    tensors = load_file(tmp_path / FORMS_FILE)
    (name,) = (name for name in tensors if name.startswith("base."))
    state = load_file(tmp_path / "a.safetensors")
    save_file({**state, "pointwise.weight": tensors.pop(name)}, tmp_path / "a.safetensors")
    save_file(tensors, tmp_path / FORMS_FILE)
    made, _ = compiled(workload)
    (form,) = made.manifest.forms.values()
    assert form.base == name.removeprefix("base.")
    assert form.base in made.manifest.models["a"].stages["main"].weights


def test_codes_of_a_base_may_be_a_layers_own(tmp_path: Path) -> None:
    """No BatchNorm is kept apart: the gain of the layer that is the base goes into a scale of its own."""
    workload = form_workload(tmp_path, {"a": {}, "b": {"pointwise.weight": Kept(2, True, True)}})
    tensors, state = load_file(tmp_path / FORMS_FILE), load_file(tmp_path / "a.safetensors")
    shape = state["pointwise.weight"].shape
    codes = unpack_codes(tensors["100.codes"], 8, state["pointwise.weight"].size).astype(np.float32)
    kernel = codes.reshape(shape) * tensors["100.scale"].reshape(-1, 1, 1, 1)
    save_file({**state, "pointwise.weight": kernel}, tmp_path / "a.safetensors")
    entry = {"model": "a", "parameter": "pointwise.weight", "index": 100, "shape": shape, "kind": "coded", "bits": 8}
    edit_json(tmp_path / "merge.json", lambda report: report["forms"]["layers"].append(entry))
    made, lines = compiled(workload)
    assert any("0 keep BatchNorm apart" in line for line in lines)
    forms = made.manifest.forms.values()
    own, difference = sorted(forms, key=lambda form: form.base is not None)
    assert own.codes == difference.base
    assert own.scale != difference.base_scale
    figures = describe(open_bundle(made.path))["forms"]
    assert [figures[kind]["weights"] for kind in ("coded", "difference", "base")] == [1, 1, 0]
    assert figures["base"]["bytes"] == 4 * len(kernel)
    edit_json(tmp_path / "merge.json", lambda report: report.pop("forms"))
    plain, _ = compiled(load_workload(tmp_path / "workload.yaml"), "plain")
    for model in "ab":
        np.testing.assert_allclose(outputs(made.path, model), outputs(plain.path, model), rtol=1e-5, atol=1e-6)


def graph_of(folder: Path, name: str, array: Any) -> None:
    """Write a model with one convolution, whose kernel is called ``w``."""
    kernel = weight("w", *array.shape)
    kernel.raw_data = array.tobytes()
    nodes = [N("Conv", ["image", "w"], ["c"]), N("GlobalAveragePool", ["c"], ["g"]), N("Flatten", ["g"], ["y"])]
    write_graph(folder / f"{name}.onnx", nodes, [kernel], outputs={"y": ["batch", array.shape[0]]})


def onnx_query(name: str) -> dict[str, Any]:
    return {"name": name, "feed": "yard", "task": "embedding", "model": {"onnx": f"{name}.onnx"}}


@pytest.mark.parametrize("coded", [False, True])
def test_a_matrix_may_be_transposed_in_an_onnx_file(
    tmp_path: Path, coded: bool, workload_in: Callable[..., Workload]
) -> None:
    rng = np.random.default_rng(0)
    states = {"a": {"fc.weight": rng.standard_normal((8, 16)).astype(np.float32)}}
    made, tensors, layers = kept_state(states, {"a": {"fc.weight": Kept(4, True, coded)}})
    kernel, matrix = weight("w", 16, 3, 3, 3), weight("m", 16, 8)
    matrix.raw_data = np.ascontiguousarray(made["a"]["fc.weight"].T).tobytes()
    nodes = [N("Conv", ["image", "w"], ["c"]), N("GlobalAveragePool", ["c"], ["g"]), N("Flatten", ["g"], ["f"])]
    nodes.append(N("MatMul", ["f", "m"], ["y"]))
    write_graph(tmp_path / "a.onnx", nodes, [kernel, matrix], outputs={"y": ["batch", 8]})
    write_forms(tmp_path, ("a",), tensors, layers)
    workload = workload_in(onnx_query("a"))
    made_bundle, _ = compiled(workload)
    (form,) = made_bundle.manifest.forms.values()
    assert (form.block, form.shape) == (8, (16, 8))
    images = rng.random((1, 3, 16, 16), np.float32)
    expected = ort.InferenceSession(str(tmp_path / "a.onnx")).run(None, {"image": images})[0]
    np.testing.assert_allclose(outputs(made_bundle.path, "a", images), expected, rtol=1e-5, atol=1e-6)
