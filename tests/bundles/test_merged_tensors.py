"""Merged tensors of a bundle: one copy each, in several precisions, or without a readable merge.json."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from int8 import network, write_bundle
from onnx import ModelProto, numpy_helper

from gemel.bundles.manifest import Precision
from gemel.bundles.merge_report import read_merge, read_report
from gemel.bundles.merged_tensors import MergedTensor, merged_tensors
from gemel.bundles.reader import MANIFEST, Bundle, open_bundle
from gemel.errors import BundleError, WorkloadError

SHARED = ("stem", "wide")
REPORT: dict[str, Any] = {
    "schema_version": "1.0",
    "strategy": "together",
    "seed": 0,
    "original_bytes": 200,
    "merged_bytes": 100,
    "layer_bytes": 180,
    "saving": 0.5,
    "layer_saving": 0.5,
    "potential": 0.6,
    "finished": True,
    "queries": {},
    "trials": [],
    "shared": [],
}
"""The fields of the first published merge.json, which every later version must read."""


def merged(folder: Path, **models: tuple[Precision, ModelProto]) -> Bundle:
    """Write a bundle with a merge.json that names two kernels of both its models."""
    write_bundle(folder, models)
    shared = [
        {"tensor": "0" * 32, "bytes": 4, "uses": [{"query": model, "parameter": name} for model in models]}
        for name in SHARED
    ]
    data = json.dumps({**REPORT, "shared": shared}).encode()
    (folder / "merge.json").write_bytes(data)
    content = json.loads((folder / MANIFEST).read_text())
    content["files"]["merge.json"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / MANIFEST).write_text(json.dumps(content))
    return open_bundle(folder)


def in_float32(model: ModelProto, name: str) -> ModelProto:
    """Replace a kernel by a float32 tensor, which the compiler never does, and return the model."""
    for tensor in model.graph.initializer:
        if tensor.name == name:
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, name))
    return model


def test_one_int8_tensor_each(tmp_path: Path) -> None:
    bundle = merged(tmp_path / "b", a=("int8", network(0)), b=("int8", network(1)))
    assert list(merged_tensors(bundle)) == [MergedTensor(f"a: {name}", frozenset({"int8"}), 1) for name in SHARED]


def test_one_tensor_in_two_precisions(tmp_path: Path) -> None:
    models = {"a": ("int8", network(0)), "b": ("int8", in_float32(network(1), "wide"))}
    stem, wide = merged_tensors(merged(tmp_path / "b", **models))  # type: ignore[arg-type]
    assert (stem.dtypes, stem.copies) == (frozenset({"int8"}), 1)
    assert (wide.dtypes, wide.copies) == (frozenset({"int8", "float32"}), 2)


def test_without_a_merge(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "b", {"a": ("int8", network(0))})
    assert read_merge(bundle) is None
    assert not list(merged_tensors(bundle))


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", json.dumps({**REPORT, "saving": None}).encode()])
def test_a_damaged_report(content: bytes, tmp_path: Path) -> None:
    bundle = merged(tmp_path / "b", a=("int8", network(0)), b=("int8", network(1)))
    bundle.file("merge.json").write_bytes(content)
    assert read_merge(bundle) is None
    assert not list(merged_tensors(bundle))
    with pytest.raises(WorkloadError, match=r"merge\.json: ") as caught:
        read_report(bundle.file("merge.json"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", ["NaN", "Infinity"])
def test_figures_are_finite(number: str, tmp_path: Path) -> None:
    path = tmp_path / "merge.json"
    path.write_text(json.dumps(REPORT).replace("0.6", number))
    with pytest.raises(WorkloadError, match=r"merge\.json: potential: .*finite"):
        read_report(path)


def test_a_later_version_may_add_fields(tmp_path: Path) -> None:
    path = tmp_path / "merge.json"
    path.write_text(json.dumps({**REPORT, "schema_version": "1.1", "invented_later": [1]}))
    assert read_report(path).saving == 0.5


def test_a_manifest_with_other_weights_than_the_graph(tmp_path: Path) -> None:
    bundle = merged(tmp_path / "b", a=("int8", network(0)), b=("int8", network(1)))
    model = bundle.manifest.models["b"]
    stage = model.stages["main"].model_copy(update={"weights": model.stages["main"].weights[1:]})
    bundle.manifest.models["b"] = model.model_copy(update={"stages": {"main": stage}})
    with pytest.raises(BundleError, match=r"^b\.onnx: has \d weights, the manifest says \d$"):
        list(merged_tensors(bundle))
