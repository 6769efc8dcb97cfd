"""Graphs that would take too much memory are refused before they do."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_graphs import N, tensor, weight, write_graph

from gemel.compiler.lowering.onnx_limits import check_pixels, limited_memory
from gemel.compiler.lowering.onnx_source import read_onnx
from gemel.compiler.passes import FoldConstants
from gemel.errors import ModelError
from gemel.workload.document.schema import Input

BILLIONS = tensor("target", np.array([1, 2_000_000_000]))
MEAN = N("ReduceMean", ["image"], ["m"], keepdims=0)
CASES: dict[str, tuple[list[onnx.NodeProto], list[onnx.TensorProto]]] = {
    "ConstantOfShape": ([N("ConstantOfShape", ["target"], ["big"])], [BILLIONS]),
    "Expand": ([MEAN, N("Expand", ["m", "target"], ["big"])], [BILLIONS]),
    "Tile": ([N("Tile", ["image", "reps"], ["big"])], [tensor("reps", np.array([1, 1000, 1000, 10]))]),
    "Range": (
        [N("Range", ["zero", "end", "one"], ["big"])],
        [tensor("zero", np.array(0)), tensor("end", np.array(2**31)), tensor("one", np.array(1))],
    ),
    "MatMul": (
        [N("MatMul", ["column", "row"], ["big"])],
        [tensor("column", np.ones((1 << 16, 1), np.float32)), tensor("row", np.ones((1, 1 << 16), np.float32))],
    ),
    "Resize": (
        [N("Resize", ["image", "", "scales"], ["big"])],
        [tensor("scales", np.array([1, 1, 5000, 5000], np.float32))],
    ),
    # The shape is computed from the image's.
    "Pad": (
        [
            N("Shape", ["image"], ["sizes"]),
            N("Mul", ["sizes", "factor"], ["more"]),
            N("Concat", ["more", "more"], ["pads"], axis=0),
            N("Pad", ["image", "pads"], ["big"]),
        ],
        [tensor("factor", np.array([0, 0, 2000, 2000]))],
    ),
}  # fmt: skip


@pytest.mark.parametrize("operator", CASES)
def test_values_of_gigabytes_are_refused_by_name(tmp_path: Path, operator: str) -> None:
    nodes, constants = CASES[operator]
    path = write_graph(
        tmp_path / "m.onnx",
        [*nodes, N("ReduceMax", ["big"], ["y"], keepdims=0)],
        constants,
        outputs={"y": []},
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelError, match=rf"m\.onnx: operator {operator} \(big\) makes a value of shape .* GB for one"):
        read_onnx(path, "raw", Input())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_constants_are_not_folded_to_millions(tmp_path: Path) -> None:
    nodes = [N("Expand", ["m", "shape"], ["e"]), N("Add", ["image", "e"], ["y"])]
    constants = [tensor("m", np.ones(1, np.float32)), tensor("shape", np.array([1, 3, 2048, 1024]))]
    path = write_graph(
        tmp_path / "m.onnx", nodes, constants, outputs={"y": [1, 3, 2048, 1024]}, image=[1, 3, 2048, 1024]
    )
    model = read_onnx(path, "raw", Input()).model
    FoldConstants(frozenset())(model)
    assert [node.op_type for node in model.graph] == ["Expand", "Add"]


def test_sizes_beyond_8k(tmp_path: Path) -> None:
    check_pixels((4320, 7680), "query a")
    with pytest.raises(ModelError, match=r"query a: input\.size \[60000, 60000\] has 3,600 million pixels; at most 33"):
        check_pixels((60000, 60000), "query a")
    nodes = [N("Conv", ["image", "w"], ["y"])]
    path = write_graph(
        tmp_path / "m.onnx",
        nodes,
        [weight("w", 1, 3, 1, 1)],
        outputs={"y": [1, 1, 60000, 60000]},
        image=[1, 3, 60000, 60000],
    )
    with pytest.raises(ModelError, match=r"m\.onnx: input\.size \[60000, 60000\]"):
        read_onnx(path, "raw", Input())


def test_shapes_that_the_image_decides_meet_the_limit_of_a_run(tmp_path: Path) -> None:
    nodes = [
        N("ReduceMax", ["image"], ["m"], keepdims=1),
        N("Reshape", ["m", "one"], ["v"]),
        N("Mul", ["v", "many"], ["n"]),
        N("Cast", ["n"], ["shape"], to=onnx.TensorProto.INT64),
        N("ConstantOfShape", ["shape"], ["big"]),
        N("ReduceMax", ["big"], ["y"], keepdims=0),
    ]
    constants = [tensor("one", np.array([1])), tensor("many", np.array([1e10], np.float32))]
    path = write_graph(tmp_path / "m.onnx", nodes, constants, outputs={"y": []})
    with pytest.raises(ModelError, match=r"m\.onnx: does not run on an image of shape \[1, 3, 16, 16\]"):
        read_onnx(path, "raw", Input())


def test_shape_inference_that_fails_logs_no_traceback(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    body = helper.make_graph(
        [N("Identity", ["on"], ["on_out"]), N("Identity", ["image"], ["state_out"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.INT64, None),
        ],
        [
            helper.make_tensor_value_info("on_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state_out", TensorProto.FLOAT, None),
        ],
    )
    path = write_graph(
        tmp_path / "loop.onnx",
        [N("Loop", ["count", "", "start"], ["out"], body=body)],
        [tensor("count", np.array(2)), tensor("start", np.array(0))],
        outputs={"out": [1, 3, 16, 16]},
    )
    with pytest.raises(ModelError, match="Loop"):
        read_onnx(path, "raw", Input())
    assert not caplog.records


def test_the_limit_of_a_run_ends_with_it() -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    with limited_memory(0):
        assert resource.getrlimit(resource.RLIMIT_AS) != before
        with pytest.raises(MemoryError):
            np.ones(16 << 30, np.uint8)
    assert resource.getrlimit(resource.RLIMIT_AS) == before
