"""Write new weights into a loaded ONNX model."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor

from .onnx_layers import Weight

__all__ = ["replace_weights"]

_Array = NDArray[np.float32]


def replace_weights(
    file: onnx.ModelProto, places: Mapping[str, tuple[Weight, ...]], state: Mapping[str, Tensor]
) -> None:
    """Set the initializers and Constants of an ONNX model to the values of a state dict, bit for bit.

    If layers that read one tensor now have different values, an initializer is added for each further value. A tensor
    that other nodes read too is not changed, and its layers read new initializers.

    Args:
        file: the ONNX model, changed in place; it must hold its weights itself, not in external data files.
        places: name in the state dict -> node inputs in the file that read the tensor.
        state: float32 tensors in the shapes of the PyTorch layers.
    """
    uses: dict[str, list[tuple[Weight, _Array]]] = defaultdict(list)
    for name, weights in places.items():
        array = state[name].detach().cpu().float().numpy()
        for weight in weights:
            uses[weight.tensor].append((weight, np.ascontiguousarray(array.T if weight.transposed else array)))
    nodes = {node.output[0]: node for node in file.graph.node}
    readers = _count_readers(file.graph)
    taken = {tensor.name for tensor in file.graph.initializer} | nodes.keys()
    for tensor, found in uses.items():
        names: dict[bytes, str] = {}
        for weight, array in found:
            value = array.tobytes()
            if value not in names and not names and readers[tensor] == len(found):
                names[value] = tensor
                _replace(file.graph, tensor, array)
            elif value not in names:
                names[value] = _free_name(tensor, taken)
                _add(file, names[value], array)
            if names[value] != tensor:
                nodes[weight.node].input[weight.index] = names[value]


def _count_readers(graph: onnx.GraphProto) -> Counter[str]:
    """Return value name -> number of node inputs that read the value's elements, directly or through an Identity.

    A Shape node reads no elements and does not count.
    """
    origin: dict[str, str] = {}
    count: Counter[str] = Counter()
    for node in graph.node:
        if node.op_type == "Identity":
            origin[node.output[0]] = origin.get(node.input[0], node.input[0])
        elif node.op_type != "Shape":
            count.update(origin.get(name, name) for name in node.input)
    return count


def _replace(graph: onnx.GraphProto, name: str, array: _Array) -> None:
    """Replace the array of an initializer or Constant of an ONNX graph, in place."""
    new = numpy_helper.from_array(array, name)
    for tensor in graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(new)
            return
    constant = next(node for node in graph.node if name in node.output)
    del constant.attribute[:]  # the old value may be in another attribute, such as `value_floats`
    constant.attribute.append(onnx.helper.make_attribute("value", new))


def _add(file: onnx.ModelProto, name: str, array: _Array) -> None:
    """Add an initializer to an ONNX model, in place."""
    file.graph.initializer.append(numpy_helper.from_array(array, name))
    if file.ir_version < 4:  # before version 4, every initializer must be a graph input too
        port = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, array.shape)
        file.graph.input.append(port)


def _free_name(name: str, taken: set[str]) -> str:
    """Return the first of ``name.2``, ``name.3``, ... that is not in ``taken``, and add this name to ``taken``."""
    number = 2
    while f"{name}.{number}" in taken:
        number += 1
    taken.add(f"{name}.{number}")
    return f"{name}.{number}"
