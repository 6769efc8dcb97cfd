"""Test the layers that are read from the graph of an ONNX file, where the file cannot be converted to PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import query, save
from onnx import TensorProto, helper, numpy_helper
from tiny_models import tiny

from gemel.errors import ModelError
from gemel.merging.analysis.analysis import analyze_workload
from gemel.merging.analysis.onnx_layer_list import layers_in_file
from gemel.merging.layers.layers import Layer
from gemel.workload import Workload
from gemel.workload.document.schema import Query

SHAPES = {
    "stem.weight": (4, 3, 3, 3),
    "deep.weight": (4, 1, 3, 3),
    "up": (4, 6, 2, 2),
    "head.weight": (7, 6),
    "last": (7, 5),
}
BYTES = sum(4 * int(np.prod(shape)) for shape in SHAPES.values())


def write(path: Path, activation: str = "Shrink") -> None:
    """Write a classifier of five classes; onnx2torch does not know the operator Shrink."""
    generator = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(generator.normal(size=shape).astype(np.float32), name) for name, shape in SHAPES.items()
    ]
    nodes = [
        helper.make_node("Conv", ["image", "stem.weight"], ["a"], strides=[2, 2]),
        helper.make_node("Conv", ["a", "deep.weight"], ["b"], group=4),
        helper.make_node(activation, ["b"], ["c"]),
        helper.make_node("ConvTranspose", ["c", "up"], ["d"]),
        helper.make_node("GlobalAveragePool", ["d"], ["e"]),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("Gemm", ["f", "head.weight"], ["g"], transB=1),
        helper.make_node("Relu", ["g"], ["h"]),
        helper.make_node("MatMul", ["h", "last"], ["scores"]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 16, 16])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 5])
    graph = helper.make_graph(nodes, "net", [image], [scores], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def asked(path: Path, **model: Any) -> Query:
    """Make a query with a model from a file."""
    fields = {"name": "door", "feed": "yard", "task": "classification", "model": {"onnx": str(path), **model}}
    return Query.model_validate(fields)


def test_layers_have_the_definitions_of_pytorch(tmp_path: Path) -> None:
    write(tmp_path / "net.onnx")
    size, layers = layers_in_file("door", asked(tmp_path / "net.onnx"), tmp_path, "shape")
    assert size == BYTES
    assert layers == (
        Layer("door", "stem", "Conv2d 4x3x3x3", (4, 3, 3, 3), 432, False),
        Layer("door", "deep", "Conv2d 4x1x3x3 groups 4", (4, 1, 3, 3), 144, False),
        Layer("door", "up", "ConvTranspose2d 4x6x2x2", (4, 6, 2, 2), 384, False),
        Layer("door", "head", "Linear 7x6", (7, 6), 168, False),
        Layer("door", "last", "TransposedLinear 5x7", (5, 7), 140, True),
    )
    _, strict = layers_in_file("door", asked(tmp_path / "net.onnx"), tmp_path, "strict")
    assert "strides" in strict[0].definition and "transB=1" in strict[3].definition


def test_quantized_kernels_are_layers_too(tmp_path: Path) -> None:
    kernel = numpy_helper.from_array(np.ones((4, 3, 3, 3), np.int8), "kernel")
    scale = numpy_helper.from_array(np.float32(0.1), "scale")
    nodes = [
        helper.make_node("DequantizeLinear", ["kernel", "scale"], ["k"]),
        helper.make_node("Conv", ["image", "k"], ["map"]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 16, 16])
    output = helper.make_tensor_value_info("map", TensorProto.FLOAT, ["N", 4, 14, 14])
    graph = helper.make_graph(nodes, "net", [image], [output], [kernel, scale])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "q.onnx")
    _, layers = layers_in_file("door", asked(tmp_path / "q.onnx"), tmp_path, "shape")
    assert layers == (Layer("door", "kernel", "Conv2d 4x3x3x3", (4, 3, 3, 3), 108, True),)


def test_one_definition_for_file_and_module(tmp_path: Path, workload_in: Callable[..., Workload]) -> None:
    """A file that is converted and one that is not have the same layers but for their names."""
    for name, activation in (("known", "Relu"), ("unknown", "Shrink")):
        write(tmp_path / f"{name}.onnx", activation)
    queries = [{**query(name), "model": {"onnx": str(tmp_path / f"{name}.onnx")}} for name in ("known", "unknown")]
    found = analyze_workload(workload_in(*queries))
    known, unknown = found.models
    assert known.kept_as_is is None and unknown.kept_as_is is not None
    assert "operator Shrink" in unknown.kept_as_is and "query unknown" in unknown.kept_as_is
    kinds = [
        [(layer.definition, layer.shape, layer.bytes, layer.head) for layer in model.layers] for model in found.models
    ]
    assert kinds[0] == kinds[1] and found.pairs == {("known", "unknown"): BYTES - 140}
    assert found.to_json()["models"]["unknown"]["kept_as_is"] == unknown.kept_as_is


def test_what_cannot_be_measured_is_left_out_by_name(tmp_path: Path, workload_in: Callable[..., Workload]) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    broken = {**query("broken"), "model": {"onnx": str(tmp_path / "broken.onnx")}}
    loaded = workload_in(broken, query("a"))
    save(tiny(0), loaded.root / "a.safetensors")
    found = analyze_workload(loaded)
    assert [model.name for model in found.models] == ["a"]
    assert list(found.left_out) == ["broken"] and "not a valid ONNX file" in found.left_out["broken"]
    assert found.to_json()["left_out"] == found.left_out
    with pytest.raises(ModelError, match=r"query broken: .*not a valid ONNX file"):
        analyze_workload(workload_in(broken))
