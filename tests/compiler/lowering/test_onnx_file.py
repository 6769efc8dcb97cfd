"""Opening of ONNX files: odd files that ONNX Runtime opens, damaged ones, and operators that cannot be compiled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_graphs import N, tensor, weight, write_graph

from gemel.compiler.lowering.onnx_file import open_onnx, refuse_operators, weight_names
from gemel.compiler.lowering.onnx_source import read_onnx, run_file
from gemel.errors import ModelError
from gemel.workload.document.schema import Input

IMAGE = np.random.default_rng(0).random((1, 3, 16, 16), np.float32)
CONV = N("Conv", ["image", "w"], ["c"], pads=[1] * 4)
TAIL = [N("GlobalAveragePool", ["c"], ["g"]), N("Flatten", ["g"], ["y"])]
OUTPUTS: dict[str, list[int | str]] = {"y": ["batch", 4]}


def test_nodes_in_any_order(tmp_path: Path) -> None:
    path = write_graph(tmp_path / "m.onnx", [*TAIL[::-1], CONV], [weight("w", 4, 3, 3, 3)], outputs=OUTPUTS)
    with pytest.raises(onnx.checker.ValidationError, match="topologically"):
        onnx.checker.check_model(str(path))
    assert [node.op_type for node in open_onnx(path).graph] == ["Conv", "GlobalAveragePool", "Flatten"]
    assert run_file(path, IMAGE)["y"].shape == (1, 4)


def test_weights_in_a_file_below(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    path = write_graph(
        tmp_path / "m.onnx", [CONV, *TAIL], [weight("w", 4, 3, 3, 3)], outputs=OUTPUTS, external="sub/w.bin"
    )
    assert weight_names(open_onnx(path)) == {"w"}
    assert run_file(path, IMAGE)["y"].shape == (1, 4)


@pytest.mark.parametrize(("length", "message"), [(None, "cannot be read: No such file"), (100, r"too short for w \[4")])
def test_weights_that_are_missing(tmp_path: Path, length: int | None, message: str) -> None:
    path = write_graph(tmp_path / "m.onnx", [CONV, *TAIL], [weight("w", 4, 3, 3, 3)], outputs=OUTPUTS, external="w.bin")
    data = (tmp_path / "w.bin").read_bytes()
    (tmp_path / "w.bin").unlink()
    if length is not None:
        (tmp_path / "w.bin").write_bytes(data[:length])
    with pytest.raises(ModelError, match=rf"m\.onnx: its weights w\.bin .*{message}"):
        open_onnx(path)


def test_weights_outside_the_folder_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    path = write_graph(tmp_path / "m.onnx", [CONV, *TAIL], [weight("w", 4, 3, 3, 3)], outputs=OUTPUTS, external="w.bin")
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].external_data[0].value = "../w.bin"
    onnx.save(model, tmp_path / "in" / "m.onnx")
    monkeypatch.chdir(tmp_path / "in")
    for name in ("m.onnx", "./m.onnx"):
        with pytest.raises(ModelError, match=r"weights \.\./w\.bin lie outside the model's folder"):
            read_onnx(Path(name), "raw", Input())


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\x08\x07\x12\x00:\x00"])
def test_files_that_are_no_models(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.onnx").write_bytes(content)
    with pytest.raises(ModelError, match=r"x\.onnx: not a valid ONNX file"):
        open_onnx(tmp_path / "x.onnx")


def test_an_initializer_that_is_an_output(tmp_path: Path) -> None:
    path = write_graph(
        tmp_path / "m.onnx", [CONV, *TAIL], [weight("w", 4, 3, 3, 3)], outputs={**OUTPUTS, "w": [4, 3, 3, 3]}
    )
    graph = open_onnx(path).graph
    assert [output.name for output in graph.outputs] == ["y", "w"]
    assert [node.op_type for node in graph][-1] == "Identity"
    source = read_onnx(path, "raw", Input())
    assert list(source.model.graph.outputs[1].shape or ()) == [4, 3, 3, 3]


def test_local_functions_are_inlined(tmp_path: Path) -> None:
    path = write_graph(
        tmp_path / "m.onnx", [N("Block", ["image", "w"], ["c"], domain="own"), *TAIL], [weight("w", 4, 3, 3, 3)],
        outputs=OUTPUTS,
    )  # fmt: skip
    model = onnx.load(path)
    body = [N("Conv", ["a", "k"], ["q"], pads=[1] * 4), N("Relu", ["q"], ["o"])]
    model.functions.append(helper.make_function("own", "Block", ["a", "k"], ["o"], body, [helper.make_opsetid("", 17)]))
    model.opset_import.append(helper.make_opsetid("own", 1))
    onnx.save(model, path)
    assert [node.op_type for node in open_onnx(path).graph][:2] == ["Conv", "Relu"]


def test_sparse_weights_are_refused(tmp_path: Path) -> None:
    path = write_graph(tmp_path / "m.onnx", [CONV, *TAIL], [weight("w", 4, 3, 3, 3)], outputs=OUTPUTS)
    model = onnx.load(path)
    values, places = tensor("s", np.ones(1, np.float32)), tensor("i", np.array([0]))
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [4]))
    onnx.save(model, path)
    with pytest.raises(ModelError, match="initializer s is sparse"):
        open_onnx(path)


def norm(outputs: int, **attributes: Any) -> onnx.NodeProto:
    """Return a BatchNormalization with a number of outputs."""
    return N("BatchNormalization", ["k", "v", "v", "v", "v"], ["c", "m", "s"][:outputs], name="bn1", **attributes)


@pytest.mark.parametrize(
    ("opset", "node"),
    [
        (15, norm(3, training_mode=1)),
        (9, norm(3)),
        (17, N("Dropout", ["k", "", "yes"], ["c"], name="bn1")),
    ],
)
def test_training_mode_is_refused_by_name(tmp_path: Path, opset: int, node: onnx.NodeProto) -> None:
    nodes = [N("Conv", ["image", "w"], ["k"], pads=[1] * 4), node, *TAIL]
    constants = [weight("w", 4, 3, 3, 3), tensor("v", np.ones(4, np.float32)), tensor("yes", np.array(True))]
    path = write_graph(tmp_path / "m.onnx", nodes, constants, outputs=OUTPUTS, opset=opset)
    message = rf"m\.onnx: operator {node.op_type} \(bn1\) is in training mode; export the model in eval mode"
    with pytest.raises(ModelError, match=message):
        read_onnx(path, "raw", Input())


@pytest.mark.parametrize(("opset", "node"), [(15, norm(1)), (9, norm(1))])
def test_inference_mode_is_not(tmp_path: Path, opset: int, node: onnx.NodeProto) -> None:
    nodes = [N("Conv", ["image", "w"], ["k"], pads=[1] * 4), node, *TAIL]
    constants = [weight("w", 4, 3, 3, 3), tensor("v", np.ones(4, np.float32))]
    path = write_graph(tmp_path / "m.onnx", nodes, constants, outputs=OUTPUTS, opset=opset)
    refuse_operators(open_onnx(path), "m")


def branch(operator: str) -> onnx.GraphProto:
    port = helper.make_tensor_value_info(f"{operator}.out", TensorProto.FLOAT, None)
    return helper.make_graph([N(operator, ["k"], [f"{operator}.out"])], operator, [], [port])


def test_branches_are_refused_unless_the_size_decides_them(tmp_path: Path) -> None:
    inner = N("If", ["condition"], ["c"], name="choose", then_branch=branch("Relu"), else_branch=branch("Sigmoid"))
    by_image = [N("ReduceMax", ["image"], ["m"], keepdims=0), N("Greater", ["m", "half"], ["condition"])]
    by_size = [
        N("Shape", ["image"], ["sizes"]), N("Gather", ["sizes", "two"], ["h"]), N("Equal", ["h", "h16"], ["condition"])
    ]  # fmt: skip
    constants = [weight("w", 4, 3, 3, 3), tensor("half", np.float32(0.5)), tensor("two", np.array(2)),
                 tensor("h16", np.array(16))]  # fmt: skip
    for name, before in (("image", by_image), ("size", by_size)):
        nodes = [N("Conv", ["image", "w"], ["k"], pads=[1] * 4), *before, inner, *TAIL]
        write_graph(tmp_path / f"{name}.onnx", nodes, constants, outputs=OUTPUTS, image=(1, 3, "h", "w"))
    with pytest.raises(ModelError, match=r"image\.onnx: operator If \(choose\) holds a graph of its own"):
        read_onnx(tmp_path / "image.onnx", "raw", Input(size=(16, 16)))
    source = read_onnx(tmp_path / "size.onnx", "raw", Input(size=(16, 16)))
    assert "Relu" in [node.op_type for node in source.model.graph]


def test_quantized_kernels_are_weights(tmp_path: Path) -> None:
    constants = [
        tensor("w", np.ones((4, 3, 3, 3), np.int8)),
        tensor("s", np.ones(4, np.float32)),
        tensor("z", np.zeros(4, np.int8)),
    ]
    nodes = [
        N("DequantizeLinear", ["w", "s", "z"], ["k"], axis=0),
        N("Conv", ["image", "k"], ["c"], pads=[1] * 4),
        *TAIL,
    ]
    path = write_graph(tmp_path / "m.onnx", nodes, constants, outputs=OUTPUTS)
    assert weight_names(open_onnx(path)) == {"w", "s"}
