"""Rewrite ONNX graphs so that onnx2torch makes ordinary PyTorch layers from them."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import LiftConstantsToInitializersPass, RemoveUnusedNodesPass, ShapeInferencePass

from ...compiler.lowering.onnx_source import OnnxSource
from ...compiler.passes import FoldConstants
from ...compiler.passes.edit import constant, replace_constant
from ...errors import ModelError, first_line
from .onnx_layers import DOMAIN, LayerNode, is_layer, layer_of

__all__ = ["prepare_graph"]

_OLDEST, _NEWEST = 9, 17
"""Oldest and newest opset (version of the ONNX operators) whose operators onnx2torch knows."""


_PADDED = ("Conv", "MaxPool", "AveragePool")
"""ONNX operators that may leave their padding to ``auto_pad``, which onnx2torch does not know."""
_WINDOW = ("kernel_shape", "strides", "dilations")
"""Attributes of ONNX convolutions and poolings that tell how far padding must reach: a number for each direction."""


def prepare_graph(source: OnnxSource) -> tuple[onnx.ModelProto, list[LayerNode]]:
    """Rewrite an ONNX graph for conversion by onnx2torch. The outputs keep their order but not their names.

    Args:
        source: the ONNX file as it was read; its graph is changed in place and must not be used afterwards.

    Returns:
        The rewritten model, and its nodes that become PyTorch layers.

    Raises:
        ModelError: the weights of a layer are computed or not float32, or an old opset cannot be converted.
    """
    model = source.model
    ir.external_data.load_to_model(model)
    version = model.opset_imports.get("", _OLDEST)
    if version < _OLDEST:
        model = _upgrade_opset(model)
    graph = model.graph
    lift = LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)
    lift(model)
    in_file = frozenset(graph.initializers)
    # Keep only the nodes that reach an output, and fold those whose result is the same for every image.
    ir.passes.Sequential(FoldConstants(source.weights), lift, RemoveUnusedNodesPass())(model)
    # Only the version number changes: later versions of most operators just add types and options. If an operator means
    # something else, despite the rewrites below, `onnx_models` finds out when it compares the outputs.
    model.opset_imports.update({"": min(max(version, _OLDEST), _NEWEST), DOMAIN: 1})
    for node in list(graph):
        _rewrite_node(node, version)
    _free_batch(graph)
    layers = []
    for index, node in enumerate(list(graph)):
        if node.graph is None:
            continue  # an Add that layer_of made the bias of a Linear
        node.name = f"{node.op_type}_{index}"
        layer = layer_of(node, in_file)
        if layer is not None:
            layers.append(layer)
    _separate_constants(graph)
    return ir.to_proto(model), layers


def _upgrade_opset(model: ir.Model) -> ir.Model:
    """Return an ONNX model converted to the oldest opset that onnx2torch knows, with inferred shapes.

    Raises:
        ModelError: onnx's version converter cannot convert the model.
    """
    try:
        model = ir.from_proto(onnx.version_converter.convert_version(ir.to_proto(model), _OLDEST))
    except RuntimeError as error:
        raise ModelError(f"opset {model.opset_imports.get('')}: {first_line(error)}") from error
    ShapeInferencePass()(model)
    return model


def _rewrite_node(node: ir.Node, version: int) -> None:
    """Rewrite one ONNX node, in place, in a form that onnx2torch supports.

    Args:
        node: a node of the graph.
        version: opset (version of the ONNX operators) of the file.
    """
    first, second = (*node.inputs[:2], None, None)[:2]
    if node.op_type == "Identity" and first is not None and first.is_initializer():
        # Exporters write equal initializers once and read them elsewhere through an Identity.
        ir.convenience.replace_all_uses_with(node.outputs[0], first, replace_graph_outputs=True)
        assert node.graph is not None
        node.graph.remove(node, safe=True)
    elif node.op_type == "Gelu":
        node.domain = DOMAIN
    elif node.op_type == "Reshape":
        node.attributes.pop("allowzero", None)  # only means something for a size of 0, and there is none
    elif node.op_type == "Split":
        node.attributes.pop("num_outputs", None)  # asks for equal parts, the default
    elif node.op_type in _PADDED:
        _pad_explicitly(node)
    elif (
        version > _NEWEST
        and node.op_type.startswith("Reduce")
        and node.op_type != "ReduceSum"
        and second is not None
        and second.const_value is not None
    ):
        # Since opset 18 the axes are an input; before, they were an attribute.
        node.attributes["axes"] = ir.AttrInt64s("axes", constant(second).tolist())
        node.resize_inputs(1)


def _pad_explicitly(node: ir.Node) -> None:
    """Give a convolution or pooling explicit padding in place of ``SAME``, which TensorFlow's converters write.

    Nothing changes if the size of the node's input is not known.
    """
    mode = node.attributes.get("auto_pad")
    image = node.inputs[0]
    sizes = None if image is None or image.shape is None else list(image.shape)[2:]
    if mode is None or mode.as_string() not in ("SAME_UPPER", "SAME_LOWER") or sizes is None:
        return
    given = {name: list(value.as_ints()) for name, value in node.attributes.items() if name in _WINDOW}
    kernel = given.get("kernel_shape")
    if kernel is None and len(node.inputs) > 1 and node.inputs[1] is not None and node.inputs[1].shape is not None:
        kernel = [size for size in list(node.inputs[1].shape)[2:] if isinstance(size, int)]
    known = [size for size in sizes if isinstance(size, int)]
    if kernel is None or len(known) != len(sizes) or len(kernel) != len(sizes):
        return
    strides, dilations = (given.get(name, [1] * len(kernel)) for name in ("strides", "dilations"))
    windows = zip(known, kernel, strides, dilations, strict=True)
    totals = [
        max(0, (-(-size // stride) - 1) * stride + (length - 1) * dilation + 1 - size)
        for size, length, stride, dilation in windows
    ]
    small, large = [total // 2 for total in totals], [total - total // 2 for total in totals]
    pads = small + large if mode.as_string() == "SAME_UPPER" else large + small
    node.attributes.pop("auto_pad")
    node.attributes["pads"] = ir.AttrInt64s("pads", pads)


def _free_batch(graph: ir.Graph) -> None:
    """Change an ONNX graph that was exported for a batch of one so that it takes batches of any size, in place.

    Reshapes of image data to ``[1, ...]`` are changed so that they keep the first size of their input.
    """
    images = set(graph.inputs)
    for node in graph:
        if node.op_type in ("Shape", "Size") or not images.intersection(node.inputs):
            continue
        images.update(node.outputs)
        shape = node.inputs[1] if node.op_type == "Reshape" else None
        if shape is not None and shape.const_value is not None:
            sizes = constant(shape)
            if len(sizes) > 1 and sizes[0] == 1:
                free = np.array([0, *sizes[1:]])  # 0 copies the size of the input
                node.replace_input_with(1, _add_initializer(graph, f"{node.outputs[0].name}:shape", free))


def _separate_constants(graph: ir.Graph) -> None:
    """Leave only the weights of layers as initializers of an ONNX graph; turn other constants into Constant nodes.

    The graph is changed in place. onnx2torch would keep other initializers as buffers of the top module, and a copy of
    the module would have these buffers in its state dict. Each graph output gets an Identity node of its own, because
    onnx2torch returns nodes, not values.
    """
    lifted: dict[ir.Value, ir.Value] = {}
    for node in list(graph):
        for index, value in enumerate(node.inputs):
            if value is None or value.const_value is None or (index and is_layer(node)):
                continue
            if value not in lifted:
                name = f"constant_{len(lifted)}"
                holder = ir.node("Constant", [], attributes={"value": value.const_value}, name=name)
                holder.outputs[0].name = f"{value.name}:constant"
                holder.outputs[0].type, holder.outputs[0].shape = value.type, value.shape
                graph.insert_before(graph[0], holder)
                lifted[value] = holder.outputs[0]
            node.replace_input_with(index, lifted[value])
    for index, value in enumerate(graph.outputs):
        last = ir.node("Identity", [value], name=f"output_{index}")
        last.outputs[0].name = f"output_{index}"
        last.outputs[0].type, last.outputs[0].shape = value.type, value.shape
        graph.append(last)
        graph.outputs[index] = last.outputs[0]


def _add_initializer(graph: ir.Graph, name: str, array: NDArray[np.int64]) -> ir.Value:
    """Add an initializer to an ONNX graph and return the graph value that stands for it."""
    value = ir.Value(name=name)
    replace_constant(value, array)
    graph.register_initializer(value)
    return value
