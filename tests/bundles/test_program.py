"""Programs: one form per architecture, independent of names, node order and weights."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from gemel.bundles.manifest import TensorSpec
from gemel.bundles.program import port_dtype, port_shape, read_model, split_model, with_constants
from gemel.errors import BackendError
from gemel.runtime.ort.session import Bound


def network(seed: int, *, rename: bool = False, width: int = 5) -> onnx.ModelProto:
    """Return two convolutions whose sum is clipped; with ``rename``, other names and another node order."""
    rng = np.random.default_rng(seed)
    tag = f"x{seed}_" if rename else ""
    kernels = [
        numpy_helper.from_array(rng.standard_normal((width, 3, 1, 1)).astype(np.float32), f"{tag}{name}")
        for name in ("left", "right")
    ]
    limits = [numpy_helper.from_array(np.float32(value), f"{tag}{name}") for name, value in (("low", 0), ("high", 6))]
    nodes = [
        helper.make_node("Conv", ["image", f"{tag}left"], [f"{tag}a"], name=f"{tag}n1", kernel_shape=[1, 1]),
        helper.make_node("Conv", ["image", f"{tag}right"], [f"{tag}b"], name=f"{tag}n2", kernel_shape=[1, 1]),
        helper.make_node("Add", [f"{tag}a", f"{tag}b"], [f"{tag}c"]),
        helper.make_node("Clip", [f"{tag}c", f"{tag}low", f"{tag}high"], ["out"]),
    ]
    if rename:
        nodes[0], nodes[1] = nodes[1], nodes[0]
        kernels.reverse()
        nodes[2].doc_string = "/home/someone/model.py"
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 4, 4])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", width, 4, 4])
    graph = helper.make_graph(nodes, "g", [image], [out], [*kernels, *limits])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def parts(model: onnx.ModelProto) -> Any:
    return split_model(read_model(model.SerializeToString()))


def test_one_architecture_is_one_program() -> None:
    one, other = parts(network(0)), parts(network(1, rename=True))
    assert one.proto == other.proto
    assert one.id == other.id
    assert one.weights == ("left", "right")
    assert other.weights == ("x1_left", "x1_right")


def test_another_shape_or_constant_is_another_program() -> None:
    model = network(0)
    assert parts(network(0, width=6)).id != parts(model).id
    model.graph.initializer[3].CopyFrom(numpy_helper.from_array(np.float32(5), "high"))
    assert parts(model).id != parts(network(0)).id


def test_the_program_computes_the_same() -> None:
    model = network(3)
    program = parts(model)
    image = np.random.default_rng(0).random((2, 3, 4, 4), np.float32)
    expected = ort.InferenceSession(model.SerializeToString()).run(None, {"image": image})[0]
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    inputs = {f"w{index}": values[name] for index, name in enumerate(program.weights)}
    found = ort.InferenceSession(program.proto).run(None, {"image": image, **inputs})[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    onnx.checker.check_model(onnx.load_from_string(program.proto))


def test_ports_called_as_programs_call_their_own() -> None:
    model = network(3)
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [{"image": "w0", "out": "v0", "a": "c0"}.get(name, name) for name in names]
    model.graph.input[0].name, model.graph.output[0].name = "w0", "v0"
    model.graph.output.add().CopyFrom(helper.make_tensor_value_info("c0", TensorProto.FLOAT, ["batch", 5, 4, 4]))
    program = parts(model)
    ports = [port.name for port in read_model(program.proto).graph.input]
    assert ports == ["w0", "w1", "w2"]
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    weights = [ort.OrtValue.ortvalue_from_numpy(values[name]) for name in program.weights]
    image = np.random.default_rng(0).random((2, 3, 4, 4), np.float32)
    expected = ort.InferenceSession(model.SerializeToString()).run(["v0", "c0"], {"w0": image})
    found = Bound(ort.InferenceSession(program.proto), weights).run({"w0": image})
    for name, values_expected in zip(("v0", "c0"), expected, strict=True):
        np.testing.assert_allclose(found[name], values_expected, rtol=1e-4)


def test_with_constants_is_the_inverse(tmp_path: Path) -> None:
    model = network(3)
    program = parts(model)
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    blob, places = b"", []
    for name in program.weights:
        data = values[name].tobytes()
        places.append(TensorSpec(offset=len(blob), length=len(data), dtype="float32", shape=values[name].shape))
        blob += data
    (tmp_path / "w.bin").write_bytes(blob)
    (tmp_path / "m.onnx").write_bytes(with_constants(program.proto, "w.bin", places))
    image = np.random.default_rng(0).random((1, 3, 4, 4), np.float32)
    expected = ort.InferenceSession(model.SerializeToString()).run(None, {"image": image})[0]
    found = ort.InferenceSession(str(tmp_path / "m.onnx")).run(None, {"image": image})[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_ports() -> None:
    graph = read_model(network(0).SerializeToString()).graph
    assert port_shape(graph.input[0]) == ("batch", 3, 4, 4)
    assert port_dtype(graph.input[0]) == "float32"


def test_a_long_chain_does_not_overflow() -> None:
    names = [f"v{index}" for index in range(5000)]
    random.Random(0).shuffle(names)
    chain = ["image", *names, "out"]
    nodes = [helper.make_node("Relu", [a], [b]) for a, b in pairwise(chain)]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("image", "out")]
    model = helper.make_model(helper.make_graph(nodes, "g", ports[:1], ports[1:]))
    assert len(read_model(parts(model).proto).graph.node) == 5001


def test_subgraphs_are_refused_by_name() -> None:
    body = helper.make_graph(
        [helper.make_node("Relu", ["image"], ["y"])],
        "body",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    node = helper.make_node("If", ["flag"], ["out"], name="branch", then_branch=body, else_branch=body)
    ports = [
        helper.make_tensor_value_info("image", TensorProto.FLOAT, [1]),
        helper.make_tensor_value_info("flag", TensorProto.BOOL, []),
        helper.make_tensor_value_info("out", TensorProto.FLOAT, [1]),
    ]
    model = helper.make_model(helper.make_graph([node], "g", ports[:2], ports[2:]))
    with pytest.raises(BackendError, match="node branch: If with a subgraph"):
        parts(model)


def test_a_weight_that_is_an_output_is_copied_to_it() -> None:
    model = network(0)
    model.graph.output.add().CopyFrom(helper.make_tensor_value_info("left", TensorProto.FLOAT, [5, 3, 1, 1]))
    model.graph.output.add().CopyFrom(helper.make_tensor_value_info("w1", TensorProto.FLOAT, [5, 3, 1, 1]))
    model.graph.node.add().CopyFrom(helper.make_node("Identity", ["right"], ["w1"]))
    program = parts(model)
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    weights = [ort.OrtValue.ortvalue_from_numpy(values[name]) for name in program.weights]
    found = Bound(ort.InferenceSession(program.proto), weights).run({"image": np.zeros((1, 3, 4, 4), np.float32)})
    np.testing.assert_array_equal(found["left"], values["left"])
    np.testing.assert_array_equal(found["w1"], values["right"])


def test_scales_of_integer_operators_stay_constants() -> None:
    vector, kernel = np.full(5, 0.5, np.float32), np.ones((5, 3, 1, 1), np.int8)
    constants = {"xs": np.float32(1), "xz": np.uint8(0), "w": kernel, "ws": vector, "wz": np.zeros(5, np.int8)}
    constants |= {"ys": np.float32(1), "yz": np.uint8(0), "b": np.zeros(5, np.int32)}
    node = helper.make_node("QLinearConv", ["image", *constants], ["out"])
    ports = [
        helper.make_tensor_value_info("image", TensorProto.UINT8, [1, 3, 4, 4]),
        helper.make_tensor_value_info("out", TensorProto.UINT8, [1, 5, 4, 4]),
    ]
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    model = helper.make_model(helper.make_graph([node], "g", ports[:1], ports[1:], tensors))
    assert parts(model).weights == ("w",)
