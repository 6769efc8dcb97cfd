"""Opening of ONNX files as graphs to compile. A file that is damaged or cannot be compiled is refused with a reason."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, OutputFixPass, RemoveInitializersFromInputsPass

from ...errors import ModelError, first_line
from ..passes import LiftConstants

__all__ = ["open_onnx", "refuse_operators", "weight_names"]

_TRAINING_UNTIL = 6
"""Newest opset in which BatchNormalization trains unless its attribute ``is_test`` is set."""
_MODE_SINCE = 14
"""Oldest opset in which the attribute ``training_mode`` says whether BatchNormalization trains."""


def open_onnx(path: Path) -> ir.Model:
    """Open an ONNX file. Weights in other files stay there and are mapped when they are read.

    Nodes are sorted, local functions are inlined, weights in Constant nodes become initializers, and every output is
    computed by a node of its own, so that an initializer or an input may be an output.

    Args:
        path: file to open; files with its weights lie in the same folder or below.

    Raises:
        ModelError: the file is not ONNX, is damaged, or its weights are missing.
    """
    try:
        proto = onnx.load(path, load_external_data=False)
        if proto.graph.sparse_initializer:
            name = proto.graph.sparse_initializer[0].values.name
            raise ModelError(
                f"{path}: initializer {name} is sparse, which is not supported; export it as a dense tensor"
            )
        if not proto.graph.output:
            raise ModelError(f"{path}: not a valid ONNX file: the graph has no outputs")
        model = ir.from_proto(proto)
        # An absolute folder: onnx_ir checks that weights lie below it, but not if it is empty.
        ir.external_data.set_base_dir(model.graph, path.absolute().parent)
        _check_weights(model, path)
        RemoveInitializersFromInputsPass()(model)
        if model.functions:
            InlinePass()(model)
        model.graph.sort()
        ir.passes.Sequential(LiftConstants(), OutputFixPass(), _SeparateOutputs())(model)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{path}: not a valid ONNX file: {first_line(error)}") from error
    return model


def refuse_operators(model: ir.Model, where: str) -> None:
    """Refuse operators that would be compiled wrongly, or not at all.

    Args:
        model: graph whose constant nodes are folded as far as possible.
        where: file, or another name of the graph, for the message.

    Raises:
        ModelError: the graph has such an operator; the message names the first.
    """
    version = model.opset_imports.get("", 1)
    for node in model.graph:
        name = f"operator {node.op_type} ({node.name or node.outputs[0].name})"
        if any(each.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for each in node.attributes.values()):
            raise ModelError(
                f"{where}: {name} holds a graph of its own, which cannot be compiled; export the model without"
                " branches and loops that depend on the image (a fixed input size often removes them), or give the"
                " PyTorch module as model.factory"
            )
        if node.op_type == "BatchNormalization" and not node.domain and _trains(node, version):
            raise ModelError(f"{where}: {name} is in training mode; export the model in eval mode (model.eval())")
        if node.op_type == "Dropout" and not node.domain and len(node.inputs) > 2 and _is_true(node.inputs[2]):
            raise ModelError(f"{where}: {name} is in training mode; export the model in eval mode (model.eval())")


def weight_names(model: ir.Model) -> frozenset[str]:
    """Return the names of a graph's initializers that are weights: floats with several elements, quantized kernels."""
    floats = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    integers = (ir.DataType.INT8, ir.DataType.UINT8)
    return frozenset(
        name
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
        and value.const_value.size > 1
        and (value.dtype in floats or (value.dtype in integers and len(value.const_value.shape) > 1))
    )


class _SeparateOutputs(ir.passes.InPlacePass):
    """Graph pass that puts an Identity node behind every initializer that is itself an output of the graph.

    A program names its weights and its outputs, and one value cannot have both names.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph, changed = model.graph, False
        for index, value in enumerate(graph.outputs):
            if not value.is_initializer():
                continue
            name = value.name or ""
            copy = ir.node("Identity", [value])
            copy.outputs[0].type, copy.outputs[0].shape = value.type, value.shape
            graph.outputs[index] = copy.outputs[0]
            graph.append(copy)
            value.name = f"{name}.weight"
            copy.outputs[0].name = name
            changed = True
        return ir.passes.PassResult(model, changed)


def _check_weights(model: ir.Model, path: Path) -> None:
    """Check the place and the length of all weights outside an ONNX file, before anything is read.

    Raises:
        ModelError: a file of weights is missing, too short, or outside the model's folder; or a length does not fit a
            shape.
    """
    sizes: dict[str, int] = {}
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        location = str(tensor.location)
        if location not in sizes:
            # Only the name counts: download caches keep the file behind a link.
            if Path(location).is_absolute() or Path(os.path.normpath(location)).parts[:1] == (os.pardir,):
                raise ModelError(f"{path}: its weights {location} lie outside the model's folder, and are not read")
            try:
                sizes[location] = Path(tensor.path).stat().st_size
            except OSError as error:
                raise ModelError(f"{path}: its weights {location} cannot be read: {error.strerror}") from error
        length = tensor.nbytes if tensor.length is None else tensor.length
        if length < tensor.nbytes or (tensor.offset or 0) + tensor.nbytes > sizes[location]:
            raise ModelError(f"{path}: its weights {location} are too short for {value.name} {list(tensor.shape)}")


def _trains(node: ir.Node, version: int) -> bool:
    """Return whether a BatchNormalization node takes mean and variance from the batch, as it does in training.

    Args:
        node: BatchNormalization node.
        version: opset of the graph.
    """
    if version >= _MODE_SINCE:
        mode = node.attributes.get("training_mode")
        return mode is not None and bool(mode.as_int())
    if version <= _TRAINING_UNTIL:
        test = node.attributes.get("is_test")
        return test is None or not test.as_int()
    # From opset 7 to 13, an output with the running mean asks for training.
    return any(output.name for output in node.outputs[1:])


def _is_true(value: ir.Value | None) -> bool:
    """Return whether a value of a graph is a constant with an element that is not 0."""
    return value is not None and value.const_value is not None and bool(value.const_value.numpy().any())
