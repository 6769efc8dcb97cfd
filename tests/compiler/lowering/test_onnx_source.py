"""Models that come as ONNX files, with weights as initializers or as Constant nodes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_graphs import N, tensor, write_graph, write_values

from gemel.bundles.decode_specs import CenterFaceDecode, ClassificationDecode, GridDecode
from gemel.bundles.reader import open_bundle
from gemel.check.source.numerics import compare_with_source
from gemel.compiler import compile_workload
from gemel.compiler.lowering.onnx_source import read_onnx
from gemel.compiler.recognition import OutputWords
from gemel.errors import ModelError
from gemel.workload import Workload
from gemel.workload.document.schema import Input


def write(path: Path, *, constants: bool, outputs: tuple[int, ...] = (3,), size: int | None = 8) -> Path:
    """Write a convolution with BatchNorm and one head per number of channels, in the form of an old exporter.

    The batch is fixed at 10, and initializers are listed among the inputs.
    """
    rng = np.random.default_rng(0)
    arrays = {"k": rng.standard_normal((4, 3, 3, 3)), **{name: rng.random(4) + 0.5 for name in ("s", "b", "m", "v")}}
    nodes = [
        helper.make_node("Conv", ["image", "k"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "s", "b", "m", "v"], ["n"]),
    ]
    for index, channels in enumerate(outputs):
        arrays[f"h{index}"] = rng.standard_normal((channels, 4, 1, 1))
        nodes.append(helper.make_node("Conv", ["n", f"h{index}"], [f"out{index}"]))
    tensors = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()]
    shape = [10, 3, size or "h", size or "w"]
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)]
    initializers = tensors
    if constants:
        nodes = [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in tensors] + nodes
        initializers = []
    else:
        inputs += [helper.make_tensor_value_info(t.name, TensorProto.FLOAT, list(t.dims)) for t in tensors]
    results = [
        helper.make_tensor_value_info(f"out{index}", TensorProto.FLOAT, [10, channels, size or "h", size or "w"])
        for index, channels in enumerate(outputs)
    ]
    graph = helper.make_graph(nodes, "g", inputs, results, initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7), path)
    return path


@pytest.mark.parametrize("constants", [False, True])
def test_compiled_and_compared(tmp_path: Path, workload_in: Callable[..., Workload], constants: bool) -> None:
    write(tmp_path / "net.onnx", constants=constants)
    query = {
        "name": "a",
        "feed": "yard",
        "task": "embedding",
        "model": {"onnx": "net.onnx", "input": {"size": [16, 24]}},
    }
    workload = workload_in(query)
    bundle = open_bundle(compile_workload(workload, tmp_path / "bundle").path)
    stage = bundle.manifest.models["a"].stages["main"]
    assert stage.inputs[0].shape == ("batch", 3, 16, 24)
    assert len(stage.weights) == 3  # BatchNorm is folded: kernel, bias, head
    assert all(result.passed for result in compare_with_source(bundle, workload, rtol=1e-4, atol=1e-6))


def test_centerface_is_recognised_by_its_outputs(tmp_path: Path) -> None:
    source = read_onnx(write(tmp_path / "f.onnx", constants=False, outputs=(1, 2, 2, 10)), "detection", Input())
    assert isinstance(source.decode, CenterFaceDecode)
    assert (source.decode.heatmap, source.decode.scale, source.decode.offset) == ("out0", "out1", "out2")
    assert source.input.size == (8, 8)
    assert source.input.scale == 1.0  # pixels from 0 to 255


def test_unknown_detectors_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "d.onnx", constants=False, outputs=(5, 7))
    message = r"d\.onnx: no decoder for task detection with outputs out0 float32 \[1, 5, 8, 8\], out1 .*centerface.*raw"
    with pytest.raises(ModelError, match=message):
        read_onnx(path, "detection", Input())


def classifier(path: Path, *, softmax: bool = True, shape: tuple[int, ...]) -> Path:
    """Write a global average with a softmax or a ReLU behind it."""
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["scores"], axes=[2, 3], keepdims=0),
        helper.make_node("Softmax" if softmax else "Relu", ["scores"], ["out"]),
    ]
    ports = [
        helper.make_tensor_value_info("image", TensorProto.FLOAT, shape),
        helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, shape[1]]),
    ]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7), path)
    return path


@pytest.mark.parametrize(("softmax", "activation"), [(True, "none"), (False, "softmax")])
def test_a_softmax_in_the_file_is_not_done_twice(tmp_path: Path, softmax: bool, activation: str) -> None:
    path = classifier(tmp_path / "c.onnx", softmax=softmax, shape=(1, 3, 8, 8))
    source = read_onnx(path, "classification", Input())
    assert isinstance(source.decode, ClassificationDecode)
    assert (source.decode.classes, source.decode.activation) == (3, activation)


def test_a_computed_bias_of_a_file_is_kept(tmp_path: Path, workload_in: Callable[..., Workload]) -> None:
    """Check that an Expand of a constant, which in PyTorch's exports is an invented bias, is kept in other files."""
    kernel = numpy_helper.from_array(np.ones((4, 3, 1, 1), np.float32), "k")
    constants = [numpy_helper.from_array(np.array(value), name) for name, value in (("five", [5.0]), ("shape", [4]))]
    constants[0] = numpy_helper.from_array(np.array([5.0], np.float32), "five")
    nodes = [
        helper.make_node("Expand", ["five", "shape"], ["bias"]),
        helper.make_node("Conv", ["image", "k", "bias"], ["out"]),
    ]
    ports = [
        helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 8, 8]),
        helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 4, 8, 8]),
    ]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], [kernel, *constants])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    onnx.save(model, tmp_path / "e.onnx")
    workload = workload_in({"name": "a", "feed": "yard", "task": "embedding", "model": {"onnx": "e.onnx"}})
    bundle = open_bundle(compile_workload(workload, tmp_path / "bundle").path)
    assert all(result.passed for result in compare_with_source(bundle, workload, rtol=1e-4, atol=1e-6))


def test_an_open_size_must_be_given(tmp_path: Path) -> None:
    path = write(tmp_path / "o.onnx", constants=False, size=None)
    with pytest.raises(ModelError, match=r"leaves the input size open; set model\.input\.size"):
        read_onnx(path, "embedding", Input())


def test_not_onnx(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"nonsense")
    with pytest.raises(ModelError, match=r"x\.onnx: not a valid ONNX file"):
        read_onnx(tmp_path / "x.onnx", "embedding", Input())


def test_computed_shapes_are_found_by_running(tmp_path: Path) -> None:
    """Check an output behind a Reshape to a computed shape, where inference fails (as in files from PaddlePaddle)."""
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["mean"], axes=[2, 3], keepdims=1),
        helper.make_node("Shape", ["image"], ["sizes"]),
        helper.make_node("Gather", ["sizes", "first"], ["batch"]),
        helper.make_node("Concat", ["batch", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["mean", "target"], ["out"]),
    ]
    constants = [numpy_helper.from_array(np.array(value), name) for name, value in (("first", [0]), ("rest", [-1]))]
    ports = [
        helper.make_tensor_value_info("image", TensorProto.FLOAT, [-1, 3, "h", "w"]),
        helper.make_tensor_value_info("out", TensorProto.FLOAT, ["a", "b"]),
    ]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7), tmp_path / "r.onnx")
    source = read_onnx(tmp_path / "r.onnx", "classification", Input(size=(8, 8)))
    assert isinstance(source.decode, ClassificationDecode)
    assert source.decode.classes == 3


def test_a_size_that_the_file_cannot_take(tmp_path: Path) -> None:
    path = write(tmp_path / "p.onnx", constants=False, outputs=(1, 2, 2, 10))
    model = onnx.load(path)
    shape = numpy_helper.from_array(np.array([1, 3, 8, 8]), "shape")
    model.graph.initializer.append(shape)
    model.graph.node.insert(0, helper.make_node("Reshape", ["image", "shape"], ["fixed"]))
    model.graph.node[1].input[0] = "fixed"
    onnx.save(model, path)
    with pytest.raises(ModelError, match=r"p\.onnx: does not run on an image of shape \[1, 3, 16, 16\]"):
        read_onnx(path, "detection", Input(size=(16, 16)))


ULTRALYTICS = {"author": "Ultralytics", "stride": "32", "names": "{0: 'cat', 1: 'dog'}", "imgsz": "[64, 96]"}
CELLS = 8 * 12 + 4 * 6 + 2 * 3


def test_metadata_of_ultralytics_name_classes_size_and_input(tmp_path: Path) -> None:
    boxes = np.random.default_rng(0).random((1, 6, CELLS), np.float32)
    path = write_values(tmp_path / "y.onnx", {"output0": boxes}, metadata={**ULTRALYTICS, "task": "detect"})
    model = onnx.load(path)
    for axis, name in ((2, "h"), (3, "w")):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    onnx.save(model, path)
    source = read_onnx(path, "detection", Input())
    assert isinstance(source.decode, GridDecode)
    assert source.labels == ("cat", "dog")
    spec = source.input
    assert (spec.size, spec.color, spec.scale) == ((64, 96), "rgb", 1 / 255)
    assert (spec.fit, spec.pad) == ("letterbox-center", 114 / 255)
    spec = read_onnx(path, "detection", Input(fit="stretch", size=(32, 32)), OutputWords(decode="yolov8")).input
    assert (spec.size, spec.fit) == ((32, 32), "stretch")


def test_the_workload_picks_outputs(tmp_path: Path) -> None:
    values = {"a": np.ones((1, 4), np.float32), "b": np.ones((1, 5), np.float32), "c": np.ones((1, 6), np.float32)}
    path = write_values(tmp_path / "m.onnx", values)
    for picked in (["c", "a"], ["2", "0"]):
        graph = read_onnx(path, "raw", Input(), OutputWords(outputs=picked)).model.graph
        assert [output.name for output in graph.outputs] == ["c", "a"]
        assert "b.values" not in graph.initializers
    with pytest.raises(ModelError, match=r"m\.onnx: outputs: d is no output of the file; it has a, b, c"):
        read_onnx(path, "raw", Input(), OutputWords(outputs=["d"]))


def test_the_output_that_a_decoder_reads_comes_first(tmp_path: Path) -> None:
    values = {"tokens": np.ones((1, 4, 8), np.float32), "pooled": np.ones((1, 8), np.float32)}
    graph = read_onnx(write_values(tmp_path / "m.onnx", values), "embedding", Input()).model.graph
    assert [output.name for output in graph.outputs] == ["pooled", "tokens"]


@pytest.mark.parametrize("tail", ["Identity", "Cast", "Reshape", "Squeeze", "Flatten", "Dropout"])
@pytest.mark.parametrize("end", ["Softmax", "Sigmoid"])
def test_activations_before_nodes_that_pass_scores_on(tmp_path: Path, tail: str, end: str) -> None:
    last: dict[str, list[onnx.NodeProto]] = {
        "Cast": [N("Cast", ["s"], ["h"], to=TensorProto.FLOAT16), N("Cast", ["h"], ["y"], to=TensorProto.FLOAT)],
        "Reshape": [N("Reshape", ["s", "target"], ["y"])],
        "Squeeze": [N("Unsqueeze", ["s", "axis"], ["u"]), N("Squeeze", ["u", "axis"], ["y"])],
    }
    nodes = [
        N("ReduceMean", ["image"], ["m"], axes=[2, 3], keepdims=0),
        N(end, ["m"], ["s"]),
        *last.get(tail, [N(tail, ["s"], ["y"])]),
    ]
    constants = [tensor("target", np.array([-1, 3])), tensor("axis", np.array([2]))]
    path = write_graph(tmp_path / "c.onnx", nodes, constants, outputs={"y": ["batch", 3]})
    decode = read_onnx(path, "classification", Input()).decode
    assert isinstance(decode, ClassificationDecode)
    assert (decode.activation, decode.multi_label) == ("none", end == "Sigmoid")


def test_class_numbers_of_an_argmax(tmp_path: Path) -> None:
    nodes = [
        N("ReduceMean", ["image"], ["m"], axes=[2, 3], keepdims=0),
        N("ArgMax", ["m"], ["y"], axis=1),
    ]
    path = write_graph(tmp_path / "c.onnx", nodes, outputs={"y": ["batch", 1]}, kinds={"y": TensorProto.INT64})
    decode = read_onnx(path, "classification", Input()).decode
    assert isinstance(decode, ClassificationDecode)
    assert (decode.class_numbers, decode.classes) == (True, 3)


def test_rows_that_the_image_decides_stay_free(tmp_path: Path) -> None:
    nodes = [
        N("Greater", ["image", "half"], ["k"]),
        N("NonZero", ["k"], ["z"]),
        N("Transpose", ["z"], ["y"], perm=[1, 0]),
    ]
    path = write_graph(
        tmp_path / "z.onnx",
        nodes,
        [tensor("half", np.float32(0.5))],
        outputs={"y": ["k", 4]},
        kinds={"y": TensorProto.INT64},
    )
    (output,) = read_onnx(path, "raw", Input()).model.graph.outputs
    assert [str(size) for size in output.shape or ()] == ["y.0", "4"]


def test_outputs_that_are_no_tensors(tmp_path: Path) -> None:
    nodes = [N("SequenceConstruct", ["image", "image"], ["s"]), N("Relu", ["image"], ["y"])]
    path = write_graph(tmp_path / "s.onnx", nodes, outputs={"y": [1, 3, 16, 16]})
    model = onnx.load(path)
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    model.graph.output.append(helper.make_value_info("s", kind))
    onnx.save(model, path)
    with pytest.raises(ModelError, match=r"s\.onnx: output s is a list, not a tensor; outputs: picks others"):
        read_onnx(path, "raw", Input())
    graph = read_onnx(path, "raw", Input(), OutputWords(outputs=["y"])).model.graph
    assert [node.op_type for node in graph] == ["Relu"]
