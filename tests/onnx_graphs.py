"""Small ONNX files whose outputs have given shapes and values, for tests of what the compiler reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

N = helper.make_node


def tensor(name: str, array: Any) -> onnx.TensorProto:
    """Return an initializer."""
    return numpy_helper.from_array(np.asarray(array), name)


def weight(name: str, *shape: int, seed: int = 0, dtype: Any = np.float32) -> onnx.TensorProto:
    """Return an initializer of seeded normal numbers."""
    return tensor(name, (np.random.default_rng(seed).standard_normal(shape) * 0.2).astype(dtype))


def write_graph(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    initializers: Sequence[onnx.TensorProto] = (),
    *,
    outputs: Mapping[str, Sequence[int | str]],
    image: Sequence[int | str] = (1, 3, 16, 16),
    dtype: int = TensorProto.FLOAT,
    kinds: Mapping[str, int] | None = None,
    more_inputs: Sequence[onnx.ValueInfoProto] = (),
    metadata: Mapping[str, str] | None = None,
    opset: int = 17,
    external: str | None = None,
) -> Path:
    """Write a graph with the input ``image``.

    Args:
        path: file to write.
        nodes: nodes, in any order.
        initializers: weights and constants.
        outputs: output name -> declared shape.
        image: declared shape of the image.
        dtype: element type of the image.
        kinds: output name -> element type; float32 for the others.
        more_inputs: inputs beside the image.
        metadata: metadata of the file.
        opset: version of the operators.
        external: file for the weights; inside the graph if None.
    """
    ports = [
        helper.make_tensor_value_info(name, (kinds or {}).get(name, TensorProto.FLOAT), shape)
        for name, shape in outputs.items()
    ]
    inputs = [helper.make_tensor_value_info("image", dtype, image), *more_inputs]
    graph = helper.make_graph(list(nodes), "g", inputs, ports, list(initializers))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    for key, value in (metadata or {}).items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, path, save_as_external_data=external is not None, location=external, size_threshold=0)
    return path


def write_values(
    path: Path,
    values: Mapping[str, NDArray[Any]],
    *,
    size: tuple[int, int] = (64, 64),
    metadata: Mapping[str, str] | None = None,
    ends: Mapping[str, str] | None = None,
) -> Path:
    """Write a graph whose outputs have given values, whatever the image.

    Each output is a constant plus the image's mean times 0, so that nothing can be folded away.

    Args:
        path: file to write.
        values: output name -> values.
        size: height and width of the image.
        metadata: metadata of the file.
        ends: output name -> operator at its end, such as ``Sigmoid``; the values go through it.
    """
    nodes = [
        N("ReduceMean", ["image"], ["mean"], keepdims=0),
        N("Mul", ["mean", "nothing"], ["zero"]),
    ]
    constants = [tensor("nothing", np.float32(0))]
    kinds = {}
    for name, array in values.items():
        constants.append(tensor(f"{name}.values", array))
        end = (ends or {}).get(name)
        kinds[name] = helper.np_dtype_to_tensor_dtype(array.dtype)
        nodes.append(N("Cast", ["zero"], [f"{name}.zero"], to=kinds[name]))
        nodes.append(N("Add", [f"{name}.values", f"{name}.zero"], [f"{name}.sum" if end else name]))
        if end:
            nodes.append(N(end, [f"{name}.sum"], [name]))
    outputs = {name: array.shape for name, array in values.items()}
    return write_graph(path, nodes, constants, outputs=outputs, image=(1, 3, *size), kinds=kinds, metadata=metadata)
