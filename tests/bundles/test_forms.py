"""Kernels that a bundle computes from stored tensors: what is read, what is refused, and the plain ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from form_bundles import FORMS
from helpers import edit_json

from gemel.bundles.blob import tensor_id
from gemel.bundles.form_nodes import without_forms
from gemel.bundles.forms import computed_layout, source_segments, stored_of
from gemel.bundles.kernel_forms import KernelForm
from gemel.bundles.manifest import FORMS_VERSION, PLAIN_VERSION
from gemel.bundles.program import read_model, split_model, with_constants
from gemel.bundles.reader import MANIFEST, open_bundle
from gemel.bundles.tensor_users import TensorUsers
from gemel.errors import BackendError, BundleError

COUNT = sum(map(len, FORMS.values()))


def test_a_computed_kernel_has_the_id_of_its_bytes(form_folder: Path) -> None:
    bundle = open_bundle(form_folder / "bundle")
    content = bundle.manifest
    assert len(content.forms) == COUNT
    for name, form in content.forms.items():
        kernel = bundle.tensor(name)
        assert (tensor_id(kernel), kernel.shape, kernel.nbytes) == (name, form.shape, content.bytes_of(name))
        assert not kernel.flags.writeable


def test_a_damaged_tensor_is_refused_by_name(form_folder: Path) -> None:
    bundle = open_bundle(form_folder / "bundle")
    name, form = next((name, form) for name, form in bundle.manifest.forms.items() if form.bits == 2)
    path = bundle.file(bundle.manifest.blob)
    data = bytearray(path.read_bytes())
    data[bundle.manifest.tensors[form.codes].offset] ^= 0b11
    path.write_bytes(data)
    with pytest.raises(BundleError, match=f"kernel {name} is damaged.*{form.codes}"):
        bundle.tensor(name)


def test_only_bundles_with_computed_kernels_have_the_new_version(form_folder: Path, bundle: Path) -> None:
    assert open_bundle(form_folder / "bundle").manifest.schema_version == FORMS_VERSION
    plain = open_bundle(bundle).manifest
    assert (plain.schema_version, plain.forms) == (PLAIN_VERSION, {})
    # As an earlier version wrote it.
    edit_json(bundle / MANIFEST, lambda document: document.pop("forms"))
    assert open_bundle(bundle).manifest == plain


def first_form(document: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return the first form of a kind: coded, difference (to a float32 base) or beside codes (to a base in codes)."""
    forms = document["forms"].values()
    fields = {"coded": (False, False), "difference": (True, False), "beside codes": (True, True)}[kind]
    return next(form for form in forms if (form["base"] is not None, form["base_scale"] is not None) == fields)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"shape": [23]}, r"float32\[23\], 24 values float32 are expected"),
        ({"dtype": "int32"}, r"int32\[24\], 24 values float32 are expected"),
    ],
)
def test_a_scale_of_the_base_that_does_not_fit_is_refused(
    form_folder: Path, change: dict[str, Any], expected: str
) -> None:
    def put(document: dict[str, Any]) -> None:
        form = first_form(document, "beside codes")
        scale = document["tensors"][form["base_scale"]]
        scale.update(change, length=4 * change.get("shape", scale["shape"])[0])

    edit_json(form_folder / "bundle" / MANIFEST, put)
    with pytest.raises(BundleError, match=f"base_scale: tensor .* is {expected}"):
        open_bundle(form_folder / "bundle")


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("difference", {"codes": "0" * 32}, "codes: tensor '0+' is not listed"),
        ("difference", {"base": "0" * 32}, "base: tensor '0+' is not listed"),
        ("difference", {"bits": 8}, r"codes: tensor .* is uint8\[\d+\], \d+ values uint8 are expected"),
        ("difference", {"shape": [24, 3, 3, 4]}, r"codes: tensor .* values uint8 are expected"),
        ("difference", {"base_bits": 8}, "base_scale: missing, but base_bits is given"),
        ("beside codes", {"base_scale": None}, "base_scale: missing, but base_bits is given"),
        ("beside codes", {"base_bits": None}, "base_bits: missing, but base_scale is given"),
        ("beside codes", {"base": None}, "base_bits: 8, but there is no base"),
        ("beside codes", {"base_bits": 3}, "base_bits: Input should be 1, 2, 4 or 8"),
        ("beside codes", {"base_bits": 4}, r"base: tensor .* is uint8\[648\], 324 values uint8 are expected"),
        ("beside codes", {"base_bits": None, "base_scale": None}, "base: tensor .*, 648 values float32 are expected"),
        ("beside codes", {"base_scale": "0" * 32}, "base_scale: tensor '0+' is not listed"),
        ("beside codes", {"block": 5}, r"scale: 24 channels do not fit the shape"),
        ("difference", {"shape": [1 << 60]}, r"shape: .* is not allowed: at most"),
        ("coded", {"shape": [0]}, "shape.0: Input should be greater than or equal to 1"),
        ("coded", {"bits": 3}, "bits: Input should be 1, 2, 4 or 8"),
        ("coded", {"block": 0}, "block: Input should be greater than or equal to 1"),
    ],
)
def test_a_form_that_does_not_fit_is_refused(
    form_folder: Path, kind: str, change: dict[str, Any], message: str
) -> None:
    edit_json(form_folder / "bundle" / MANIFEST, lambda document: first_form(document, kind).update(change))
    with pytest.raises(BundleError, match=rf"forms\.[0-9a-f]{{32}}.*{message}"):
        open_bundle(form_folder / "bundle")


def test_parts_of_another_kind_are_refused(form_folder: Path) -> None:
    def swap(document: dict[str, Any]) -> None:
        form = first_form(document, "difference")
        form["scale"] = form["codes"]

    edit_json(form_folder / "bundle" / MANIFEST, swap)
    with pytest.raises(BundleError, match=r"scale"):
        open_bundle(form_folder / "bundle")


def test_a_kernel_cannot_be_both_stored_and_computed(form_folder: Path) -> None:
    def store(document: dict[str, Any]) -> None:
        tensor = next(iter(document["tensors"]))
        document["forms"][tensor] = next(iter(document["forms"].values()))

    edit_json(form_folder / "bundle" / MANIFEST, store)
    with pytest.raises(BundleError, match="the kernel is also stored as a tensor"):
        open_bundle(form_folder / "bundle")


def test_a_part_outside_the_models_segments_is_refused(form_folder: Path) -> None:
    def take(document: dict[str, Any]) -> None:
        codes = first_form(document, "difference")["codes"]
        (segment,) = (name for name, spec in document["segments"].items() if codes in spec["tensors"])
        for model in document["models"].values():
            model["segments"] = [name for name in model["segments"] if name != segment]

    edit_json(form_folder / "bundle" / MANIFEST, take)
    with pytest.raises(BundleError, match="lies in none of the model's segments"):
        open_bundle(form_folder / "bundle")


def test_what_is_only_a_source_has_segments_of_its_own(form_folder: Path) -> None:
    content = open_bundle(form_folder / "bundle").manifest
    sources = {tensor for form in content.forms.values() for tensor in form.stored}
    apart = source_segments(content)
    assert {tensor for name in apart for tensor in content.segments[name].tensors} == sources
    bases = {form.base for form in content.forms.values() if form.base is not None}
    both = {
        tensor for name in apart if len(content.segments[name].models) == 2 for tensor in content.segments[name].tensors
    }
    assert len(bases) == 2
    assert bases <= both


def test_any_tool_runs_the_file(form_folder: Path) -> None:
    """The nodes that compute kernels are standard ones, and give what the bundle computes."""
    bundle = open_bundle(form_folder / "bundle")
    onnx.checker.check_model(str(bundle.path / "b.onnx"), full_check=True)
    stage = bundle.manifest.models["b"].stages["main"]
    model = read_model(bundle.file(stage.file).read_bytes())
    program = split_model(model)
    assert program.id == stage.program == bundle.manifest.models["a"].stages["main"].program
    weights = [bundle.tensor(weight) for weight in stage.weights]
    image = np.random.default_rng(0).random((2, 3, 32, 32), np.float32)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    (expected,) = ort.InferenceSession(with_constants(program.proto, "none", weights), options).run(
        None, {"image": image}
    )
    (found,) = ort.InferenceSession(str(bundle.path / "b.onnx"), options).run(None, {"image": image})
    assert found.tobytes() == expected.tobytes()


def test_a_damaged_mark_is_refused(form_folder: Path) -> None:
    model = read_model((form_folder / "bundle" / "a.onnx").read_bytes())
    assert without_forms(without_forms(model)) is not model
    marks = [entry for node in model.graph.node for entry in node.metadata_props if entry.value]
    marks[0].value = "[1, oops"
    with pytest.raises(BackendError, match=r"gemel\.form is '\[1, oops', a shape is expected"):
        split_model(model)


def test_kernels_of_the_same_models_are_one_segment(form_folder: Path) -> None:
    forms = open_bundle(form_folder / "bundle").manifest.forms
    first, second, *others = forms
    users = {first: ["a"], second: ["a", "b"], others[0]: ["a"]}
    placed = computed_layout(forms, users)
    assert {name: set(spec.tensors) for name, spec in placed.segments.items()} == {
        "d0": {second},
        "d1": {first, others[0]},
    }
    assert list(stored_of([first, "stored"], forms)) == [*forms[first].stored, "stored"]


def test_a_kernel_that_is_stored_anyway_is_not_computed() -> None:
    form = KernelForm(np.ones((2, 4), np.int8), 2, np.ones(2, np.float32), None)
    kernel, kept = tensor_id(form.kernel()), dict[str, Any]()
    users = TensorUsers(kept.__setitem__)
    users.add_form("a", kernel, form)
    assert set(users.forms()) == {kernel}
    users.add("b", kernel, form.kernel())
    assert not users.forms()
    placed = users.layout()
    assert [spec.models for spec in placed.segments.values() if kernel in spec.tensors] == [("a", "b")]
