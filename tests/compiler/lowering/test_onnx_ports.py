"""Inputs of ONNX files: every layout and type of image becomes float32 NCHW, and other inputs become constants."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx_graphs import N, tensor, weight, write_graph

from gemel.bundles.reader import open_bundle
from gemel.check.source.numerics import compare_with_source
from gemel.compiler import compile_workload
from gemel.compiler.lowering.onnx_source import OnnxSource, read_onnx, run_file
from gemel.errors import ModelError
from gemel.workload import Workload
from gemel.workload.document.schema import Input

KERNEL = weight("w", 4, 3, 3, 3)
TAIL = [N("GlobalAveragePool", ["c"], ["g"]), N("Flatten", ["g"], ["y"])]


def run(source: OnnxSource, image: NDArray[np.float32]) -> list[NDArray[Any]]:
    """Run a graph as it is compiled."""
    session = ort.InferenceSession(ir.to_proto(source.model).SerializeToString())
    (port,) = session.get_inputs()
    return list(session.run(None, {port.name: image}))


def net(path: Path, *, dtype: int, layout: str) -> Path:
    """Write a convolution whose image has a type and a layout."""
    kernel = weight("w", 4, 3, 3, 3, dtype=np.float16 if dtype == TensorProto.FLOAT16 else np.float32)
    nodes, last = [], "image"
    if dtype == TensorProto.UINT8:
        nodes, last = [N("Cast", ["image"], ["f"], to=TensorProto.FLOAT)], "f"
    if "N" not in layout:
        nodes.append(N("Unsqueeze", [last, "axis"], ["u"]))
        last = "u"
    if layout.endswith("HWC"):
        nodes.append(N("Transpose", [last], ["t"], perm=[0, 3, 1, 2]))
        last = "t"
    nodes += [N("Conv", [last, "w"], ["c"], pads=[1] * 4), *TAIL]
    sizes: dict[str, int | str] = {"N": "batch", "C": 3, "H": 8, "W": 12}
    kind = {"y": TensorProto.FLOAT16} if dtype == TensorProto.FLOAT16 else {}
    constants = [kernel, tensor("axis", np.array([0]))]
    return write_graph(
        path,
        nodes,
        constants,
        outputs={"y": ["batch", 4]},
        image=[sizes[axis] for axis in layout],
        dtype=dtype,
        kinds=kind,
    )


@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "CHW", "HWC"])
@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8])
def test_images_become_float32_planes(tmp_path: Path, dtype: int, layout: str) -> None:
    path = net(tmp_path / "m.onnx", dtype=dtype, layout=layout)
    source = read_onnx(path, "embedding", Input())
    (port,) = source.model.graph.inputs
    batch = "batch" if "N" in layout else 1
    assert (port.name, port.dtype) == ("image", ir.DataType.FLOAT)
    assert [str(size) for size in port.shape or ()] == [str(batch), "3", "8", "12"]
    assert source.input.size == (8, 12)
    assert source.input.scale == (1.0 if dtype == TensorProto.UINT8 else 1 / 255)
    assert source.model.graph.outputs[0].dtype == ir.DataType.FLOAT
    image = np.random.default_rng(0).integers(0, 256, (1, 3, 8, 12)).astype(np.float32)
    image *= np.float32(source.input.scale)
    (found,), expected = run(source, image), run_file(path, image)["y"]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected.astype(np.float32), rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_shapes_that_are_open_are_read_from_the_first_node(tmp_path: Path, layout: str) -> None:
    path = net(tmp_path / "m.onnx", dtype=TensorProto.FLOAT, layout=layout)
    model = onnx.load(path)
    for index, dim in enumerate(model.graph.input[0].type.tensor_type.shape.dim):
        dim.dim_param = f"d{index}"
    onnx.save(model, path)
    with pytest.raises(ModelError, match="leaves the input size open"):
        read_onnx(path, "embedding", Input())
    source = read_onnx(path, "embedding", Input(size=(10, 14)))
    assert source.input.size == (10, 14)
    assert ("Transpose" in [node.op_type for node in source.model.graph][:1]) == (layout == "NHWC")


def with_second(path: Path, name: str, shape: list[int | str], kind: int) -> Path:
    """Write a network with a second input whose largest value scales the output."""
    second = helper.make_tensor_value_info(name, kind, shape)
    nodes = [
        N("Conv", ["image", "w"], ["c"], pads=[1] * 4),
        *TAIL[:1],
        N("Flatten", ["g"], ["f"]),
        N("Cast", [name], ["s"], to=TensorProto.FLOAT),
        N("ReduceSum", ["s"], ["r"], keepdims=0),
        N("Mul", ["f", "r"], ["y"]),
    ]
    return write_graph(
        path, nodes, [KERNEL], outputs={"y": ["batch", 4]}, image=("batch", 3, 8, 12), more_inputs=[second]
    )


@pytest.mark.parametrize(
    ("name", "shape", "kind", "total"),
    [
        ("orig_target_sizes", ["batch", 2], TensorProto.INT64, 20),
        ("im_shape", [1, 2], TensorProto.FLOAT, 20),
        ("scale_factor", [1, 2], TensorProto.FLOAT, 2),
        ("pixel_mask", ["batch", 8, 12], TensorProto.INT64, 96),
    ],
)
def test_other_inputs_become_constants(
    tmp_path: Path, workload_in: Callable[..., Workload], name: str, shape: list[int | str], kind: int, total: int
) -> None:
    path = with_second(tmp_path / "m.onnx", name, shape, kind)
    source = read_onnx(path, "embedding", Input())
    assert [port.name for port in source.model.graph.inputs] == ["image"]
    constant = source.model.graph.initializers[name].const_value
    assert constant is not None and constant.numpy().sum() == total
    workload = workload_in({"name": "a", "feed": "yard", "task": "embedding", "model": {"onnx": "m.onnx"}})
    bundle = open_bundle(compile_workload(workload, tmp_path / "bundle").path)
    assert all(result.passed for result in compare_with_source(bundle, workload, rtol=1e-4, atol=1e-6))


def test_the_order_of_target_sizes(tmp_path: Path) -> None:
    source = read_onnx(
        with_second(tmp_path / "m.onnx", "orig_target_sizes", ["batch", 2], TensorProto.INT64), "raw", Input()
    )
    constant = source.model.graph.initializers["orig_target_sizes"].const_value
    assert constant is not None and constant.numpy().tolist() == [[12, 8]]  # width, height


def test_unknown_inputs_are_named(tmp_path: Path) -> None:
    path = with_second(tmp_path / "m.onnx", "iou", [1], TensorProto.FLOAT)
    with pytest.raises(
        ModelError, match=r"m\.onnx: input iou FLOAT \[1\] is not an image; write its value into the file"
    ):
        read_onnx(path, "raw", Input())
    path = write_graph(tmp_path / "f.onnx", [N("Relu", ["image"], ["y"])], outputs={"y": [1, 9]}, image=(1, 9))
    with pytest.raises(ModelError, match=r"f\.onnx: one image is expected .* the file has: image FLOAT \[1,9\]"):
        read_onnx(path, "raw", Input())


def test_colours_that_do_not_fit(tmp_path: Path) -> None:
    path = write_graph(
        tmp_path / "g.onnx", [N("Relu", ["image"], ["y"])], outputs={"y": [1, 1, 8, 8]}, image=(1, 1, 8, 8)
    )
    assert read_onnx(path, "raw", Input()).input.color == "gray"
    with pytest.raises(ModelError, match=r"input has 1 channels, model\.input\.color is rgb"):
        read_onnx(path, "raw", Input(color="rgb"))
