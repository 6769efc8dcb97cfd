"""What a bundle says became of what was merged."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from int8 import network, write_bundle
from onnx import ModelProto, numpy_helper

from gemel.bundles.manifest import Precision
from gemel.bundles.merge_summary import MergedTensor, merged_tensors, read_merge
from gemel.bundles.reader import MANIFEST, Bundle, open_bundle
from gemel.errors import BundleError

SHARED = ("stem", "wide")


def merged(folder: Path, **models: tuple[Precision, ModelProto]) -> Bundle:
    """A bundle with a merge.json that names two kernels of both its models."""
    write_bundle(folder, models)
    uses = [[{"query": model, "parameter": name} for model in models] for name in SHARED]
    report = {"original_bytes": 200, "merged_bytes": 100, "saving": 0.5, "queries": {}}
    data = json.dumps({**report, "shared": [{"uses": each} for each in uses]}).encode()
    (folder / "merge.json").write_bytes(data)
    content = json.loads((folder / MANIFEST).read_text())
    content["files"]["merge.json"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / MANIFEST).write_text(json.dumps(content))
    return open_bundle(folder)


def in_float32(model: ModelProto, name: str) -> ModelProto:
    """The same model, with a kernel that is a float32 tensor, as no compiler writes it."""
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


def test_a_report_that_is_none(tmp_path: Path) -> None:
    bundle = merged(tmp_path / "b", a=("int8", network(0)), b=("int8", network(1)))
    bundle.file("merge.json").write_text("[]")
    assert read_merge(bundle) is None
    assert not list(merged_tensors(bundle))


def test_a_manifest_with_other_weights_than_the_graph(tmp_path: Path) -> None:
    bundle = merged(tmp_path / "b", a=("int8", network(0)), b=("int8", network(1)))
    model = bundle.manifest.models["b"]
    stage = model.stages["main"].model_copy(update={"weights": model.stages["main"].weights[1:]})
    bundle.manifest.models["b"] = model.model_copy(update={"stages": {"main": stage}})
    with pytest.raises(BundleError, match=r"^b\.onnx: has \d weights, the manifest says \d$"):
        list(merged_tensors(bundle))
