"""Constants that are no weights: they must stay in the program when a graph is optimised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from gemel.runtime.ort.optimise import optimise

RNG = np.random.default_rng(0)
IMAGE = RNG.random((1, 3, 64, 64), np.float32)
Constants = dict[str, NDArray[Any]]


def node(kind: str, inputs: str, output: str, **attributes: Any) -> NodeProto:
    return helper.make_node(kind, inputs.split(), [output], **attributes)


def model(nodes: list[NodeProto], constants: Constants) -> ModelProto:
    """Return a graph from ``image`` to ``y`` that begins with a convolution from ``image`` to ``c``, 256 channels."""
    constants = {"kernel": RNG.standard_normal((256, 3, 3, 3)).astype(np.float32), **constants}
    first = node("Conv", "image kernel", "c", pads=[1] * 4)
    graph = helper.make_graph(
        [first, *nodes],
        "model",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, IMAGE.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def gathered() -> ModelProto:
    return model([node("Gather", "c order", "y", axis=1)], {"order": RNG.permutation(256)})


def masked() -> ModelProto:
    mask = RNG.random((64, 64)) > 0.5
    return model([node("Where", "mask c zero", "y")], {"mask": mask, "zero": np.zeros(1, np.float32)})


def quantised() -> ModelProto:
    """A convolution in Q/DQ with a scale for each output channel and int32 biases, as ONNX Runtime's tool writes it."""
    scales = RNG.uniform(0.01, 0.02, 256).astype(np.float32)
    constants: Constants = {
        "one": np.array(0.05, np.float32),
        "zero": np.array(0, np.uint8),
        "k8": RNG.integers(-127, 127, (256, 256, 1, 1)).astype(np.int8),
        "scales": scales,
        "zeros": np.zeros(256, np.int8),
        "b32": RNG.integers(-99, 99, 256).astype(np.int32),
        "bscales": scales * np.float32(0.05),
        "bzeros": np.zeros(256, np.int32),
    }
    nodes = [
        node("QuantizeLinear", "c one zero", "q"),
        node("DequantizeLinear", "q one zero", "dq"),
        node("DequantizeLinear", "k8 scales zeros", "k", axis=0),
        node("DequantizeLinear", "b32 bscales bzeros", "b", axis=0),
        node("Conv", "dq k b", "y"),
    ]
    return model(nodes, constants)


@pytest.mark.parametrize("made", [gathered, masked, quantised], ids=lambda made: str(made.__name__))
def test_constants_of_any_type_and_size_stay_in_the_program(made: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(made().SerializeToString())
    program, weights = optimise(path, None, tmp_path)
    assert not (tmp_path / "optimised.bin").exists()
    session = ort.InferenceSession(program.proto)
    names = [port.name for port in session.get_inputs()]
    assert len(names) == 1 + len(weights)
    (found,) = session.run(None, dict(zip(names, [IMAGE, *weights], strict=True)))
    (wanted,) = ort.InferenceSession(str(path)).run(None, {"image": IMAGE})
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
