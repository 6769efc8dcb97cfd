"""Small INT8 and FP16 graphs, and bundles of them, written by hand."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from gemel.bundles import blob, manifest
from gemel.bundles.onnx_wire import tensor_array
from gemel.bundles.program import port_dtype, port_shape, read_model, split_model
from gemel.bundles.reader import MANIFEST, Bundle, open_bundle

__all__ = [
    "CHANNELS",
    "Array",
    "Drawing",
    "arrays",
    "close",
    "images",
    "int8_bundle",
    "network",
    "random_int8",
    "run_as_written",
    "wired",
    "write_bundle",
]

Array = NDArray[Any]
CHANNELS = 64


class Drawing:
    """An ONNX graph that grows node by node; methods take and return names of values."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}

    def constant(self, values: Array, name: str | None = None) -> str:
        """Add an initializer."""
        name = name or f"c{len(self.constants)}"
        self.constants[name] = values
        return name

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node, and return the name of its output."""
        self.nodes.append(helper.make_node(kind, inputs, [f"v{len(self.nodes)}"], **attributes))
        return f"v{len(self.nodes) - 1}"

    def rounded(self, value: str, peak: float) -> str:
        """Add QuantizeLinear and DequantizeLinear behind a value."""
        scale, zero = self.constant(np.float32(peak / 127)), self.constant(np.int8(0))
        return self.node("DequantizeLinear", self.node("QuantizeLinear", value, scale, zero), scale, zero)

    def kernel(self, values: Array, scale: Array, axis: int, name: str | None = None) -> str:
        """Add an int8 kernel and a DequantizeLinear; kernels of the same name are one initializer."""
        held = name if name in self.constants else self.constant(values, name)
        assert held is not None
        return self.node("DequantizeLinear", held, self.constant(scale.astype(np.float32)), axis=axis)

    def bias(self, size: int) -> str:
        """Add a bias of random float32 numbers."""
        return self.constant(self.random.normal(0, 0.3, size).astype(np.float32))

    def model(self, output: str, shape: Sequence[int | str] = ("batch", 3, 16, 16)) -> onnx.ModelProto:
        """Return the model from ``image`` to a value, which becomes the output ``out``."""
        nodes = [*self.nodes, helper.make_node("Identity", [output], ["out"])]
        ports = [
            helper.make_tensor_value_info("image", TensorProto.FLOAT, shape),
            helper.make_tensor_value_info("out", TensorProto.FLOAT, None),
        ]
        constants = [numpy_helper.from_array(values, name) for name, values in self.constants.items()]
        graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], constants)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        made = onnx.shape_inference.infer_shapes(made)
        onnx.checker.check_model(made)
        return made


def random_int8(seed: int, *shape: int) -> Array:
    """Return random integers from -127 to 127."""
    values: Array = np.random.default_rng(seed).integers(-127, 128, shape).astype(np.int8)
    return values


def network(scales: int, bias: int | None = None, channels: int = CHANNELS) -> onnx.ModelProto:
    """Return a network of a convolution, a depthwise one, a residual one, and a classifier of 5 classes.

    No value is cut off by rounding. Int8 kernels are the same in all networks.

    Args:
        scales: seed of the kernels' scales; networks with different seeds have no scale in common.
        bias: seed of the biases; by default the same as ``scales``.
        channels: channels of the convolutions.
    """
    draw = Drawing(scales if bias is None else bias)
    random = np.random.default_rng(100 + scales)

    def layer(value: str, seed: int, *shape: int, name: str, **attributes: Any) -> str:
        fan = int(np.prod(shape[1:]))
        scale = random.uniform(0.5, 1.5, shape[0]) / 73 / fan**0.5
        kernel = draw.kernel(random_int8(seed, *shape), scale, 0, name)
        kind = "Gemm" if len(shape) == 2 else "Conv"
        return draw.node(kind, value, kernel, draw.bias(shape[0]), **attributes)

    around = {"pads": [1, 1, 1, 1]}
    x = layer(draw.rounded("image", 3), 1, channels, 3, 3, 3, name="stem", **around)
    x = draw.rounded(draw.node("Relu", x), 6)
    y = layer(x, 2, channels, 1, 3, 3, name="depthwise", group=channels, **around)
    limits = [draw.constant(np.float32(limit)) for limit in (0, 6)]
    y = draw.rounded(draw.node("Clip", y, *limits), 6)
    y = draw.rounded(layer(y, 3, channels, channels, 3, 3, name="wide", **around), 12)
    x = draw.rounded(draw.node("Relu", draw.node("Add", x, y)), 12)
    x = draw.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = draw.rounded(draw.node("Flatten", draw.node("GlobalAveragePool", x)), 6)
    return draw.model(layer(x, 4, 5, channels, name="head", transB=1))


def images(batch: int = 1) -> dict[str, Array]:
    """Return inputs of a network: images of noise."""
    return {"image": np.random.default_rng(0).normal(0, 1, (batch, 3, 16, 16)).astype(np.float32)}


def wired(model: onnx.ModelProto) -> Any:
    """Return a model as the runtime reads it, without the onnx package."""
    return read_model(model.SerializeToString())


def run_as_written(model: Any, inputs: Mapping[str, Array]) -> Array:
    """Return a model's output without ONNX Runtime's optimisations, which round more than the nodes say."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    output: Array = ort.InferenceSession(model.SerializeToString(), options).run(None, inputs)[0]
    return output


def arrays(model: Any) -> dict[str, Array]:
    """Return initializer -> values."""
    return {tensor.name: tensor_array(tensor) for tensor in model.graph.initializer}


def close(found: Array, expected: Array, tolerance: float = 1e-5) -> None:
    """Check that values differ by at most a part of the largest expected one."""
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


def write_bundle(folder: Path, models: Mapping[str, tuple[manifest.Precision, onnx.ModelProto]]) -> Bundle:
    """Write a bundle of classifiers with one stage each, as the compiler does, and open it."""
    folder.mkdir()
    arrays: dict[str, Array] = {}
    users: dict[str, set[str]] = {}
    weights: dict[str, dict[str, str]] = {}
    for name, (_, model) in models.items():
        values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        weights[name] = {weight: blob.tensor_id(values[weight]) for weight in split_model(wired(model)).weights}
        for weight, tensor in weights[name].items():
            arrays[tensor] = values[weight]
            users.setdefault(tensor, set()).add(name)
    placed = blob.layout({name: (array.dtype.name, array.shape) for name, array in arrays.items()}, users)
    digest = blob.write_blob(folder / "weights.bin", placed, arrays.__getitem__)
    files = {"weights.bin": manifest.FileSpec(bytes=placed.bytes, sha256=digest)}
    specs: dict[str, Any] = {}
    programs: dict[str, Any] = {}
    for name, (precision, model) in models.items():
        for value in model.graph.initializer:
            if value.name in weights[name]:
                _put_outside(value, placed.tensors[weights[name][value.name]])
        data = model.SerializeToString()
        (folder / f"{name}.onnx").write_bytes(data)
        files[f"{name}.onnx"] = manifest.FileSpec(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        parts, graph = split_model(read_model(data)), read_model(data).graph
        inputs, outputs = (
            [manifest.Port(name=port.name, dtype=port_dtype(port), shape=port_shape(port)) for port in ports]
            for ports in (graph.input, graph.output)
        )
        stage = {"file": f"{name}.onnx", "program": parts.id, "inputs": inputs, "outputs": outputs}
        others = programs[parts.id]["models"] if parts.id in programs else []
        programs[parts.id] = {"models": [*others, name], "inputs": len(parts.weights)}
        specs[name] = {
            "stages": {"main": {**stage, "weights": [weights[name][weight] for weight in parts.weights]}},
            "input": {"size": [16, 16]},
            "decode": {"kind": "classification", "classes": 5},
            "precision": precision,
            "bytes": sum(placed.tensors[tensor].length for tensor in {*weights[name].values()}),
            "segments": [segment for segment, spec in placed.segments.items() if name in spec.models],
        }
    content = manifest.Manifest(
        producer={"gemel": "0"},
        device={},
        sla_ms=1000,
        feeds={"yard": {"source": "yard.mp4"}},
        queries={name: {"feed": "yard", "model": name, "task": "classification"} for name in models},
        models=specs,
        programs=programs,
        tensors=placed.tensors,
        segments=placed.segments,
        files=files,
    )
    (folder / MANIFEST).write_text(content.model_dump_json())
    return open_bundle(folder)


def _put_outside(tensor: onnx.TensorProto, place: manifest.TensorSpec) -> None:
    """Let an initializer refer to its place in the blob."""
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "weights.bin"), ("offset", place.offset), ("length", place.length)):
        tensor.external_data.add(key=key, value=str(value))


def int8_bundle(folder: Path) -> Bundle:
    """Write a bundle of two models with the same kernels, each with its own scales."""
    return write_bundle(folder, {"a": ("int8", network(0)), "b": ("int8", network(1))})
