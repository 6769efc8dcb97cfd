"""Graphs of older ONNX files compute the same in a version of the operators that has per-channel scales."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from precision_cases import drawn, frames, initializer, run

from gemel.calib.opset import raised
from gemel.calib.quantize import observed, quantize
from gemel.calib.ranges import peaks_of
from gemel.errors import CompileError

SIZE = (3, 8, 8)


def old(version: int, nodes: str = "x = Conv(image, k)\n r = Relu(x)\n out = Flatten(r)") -> ir.Model:
    kernel = np.random.default_rng(0).normal(0, 1, (4, 3, 3, 3)).astype(np.float32)
    ports = "(float[batch,3,8,8] image) => (float[batch,144] out)"
    proto = onnx.parser.parse_model(f'<ir_version: 4, opset_import: ["": {version}]> g {ports} {{ {nodes} }}')
    proto.graph.initializer.append(onnx.numpy_helper.from_array(kernel, "k"))
    model: ir.Model = ir.from_proto(proto)
    model.graph.name = "gate"
    return model


@pytest.mark.parametrize("version", [9, 11, 12])
def test_an_older_graph_is_raised_and_can_be_int8(version: int) -> None:
    model, images = old(version), frames(2, SIZE)
    made = raised(model)
    assert made.opset_imports[""] >= 13
    assert made.graph.name == "gate"
    # Weights keep their names and bytes: the proof that weights are still shared compares these.
    np.testing.assert_array_equal(initializer(made, "k"), initializer(model, "k"))
    assert [port.name for port in made.graph.inputs] == ["image"]
    wanted = run(made, images[0])[0]
    quantize(made, peaks_of(made, observed(made), images, "min-max"))
    assert 0 < np.abs(run(made, images[0])[0] - wanted).max() < 0.05 * np.abs(wanted).max()


def test_a_newer_graph_is_not_touched() -> None:
    model = drawn("out = Relu(image)", SIZE)
    assert raised(model) is model
    model = old(13)
    assert raised(model) is model


@pytest.mark.parametrize("kind", [RuntimeError, onnx.version_converter.ConvertError])
def test_operators_that_cannot_be_raised_are_told(monkeypatch: pytest.MonkeyPatch, kind: type[Exception]) -> None:
    def refuse(proto: onnx.ModelProto, version: int) -> onnx.ModelProto:
        raise kind("no adapter\nand a page of details")

    monkeypatch.setattr(onnx.version_converter, "convert_version", refuse)
    with pytest.raises(CompileError) as caught:
        raised(old(9))
    assert str(caught.value) == (
        "model gate: int8 and fp16 need operators of version 13, it has 9, and they cannot be converted: no adapter;"
        " give the query precision: fp32"
    )
