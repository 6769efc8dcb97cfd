"""Convert ONNX graphs to PyTorch modules of ordinary layers, with onnx2torch."""

from __future__ import annotations

import warnings
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from onnx2torch import convert as onnx2torch
from onnx2torch.node_converters import get_converter
from onnx2torch.node_converters.registry import add_converter
from onnx2torch.onnx_graph import OnnxGraph
from onnx2torch.utils.common import (
    OnnxMapping,
    OperationConverterResult,
    onnx_mapping_from_node,
)
from torch import fx, nn

from ...compiler.lowering.onnx_source import OnnxSource
from ...errors import ModelError, first_line
from .onnx_graph import prepare_graph
from .onnx_layers import DOMAIN, LayerNode, Weight
from .trace import NORMS

__all__ = ["Converted", "TransposedLinear", "convert"]

_FIELDS = ("weight", "bias", "running_mean", "running_var")
"""Attributes of a PyTorch layer that hold its weights, in the order of the ONNX node's inputs."""


class TransposedLinear(nn.Linear):
    """Linear layer whose weight the ONNX file stores as ``[inputs, outputs]``.

    The class keeps such a layer from sharing with an ordinary ``nn.Linear``: weights that are equal in PyTorch would
    still be different bytes in the files.
    """


@dataclass(frozen=True)
class Converted:
    """PyTorch module made from an ONNX graph, and the node inputs of the ONNX file that read its weights."""

    module: fx.GraphModule
    """PyTorch module in eval mode; it returns the graph's outputs in the graph's order."""
    places: dict[str, tuple[Weight, ...]]
    """Name in the state dict -> node inputs in the ONNX file that read the tensor; for all parameters and running
    statistics."""
    notes: tuple[str, ...]
    """Warnings that onnx2torch gave during the conversion."""


def convert(source: OnnxSource) -> Converted:
    """Convert an ONNX graph to a PyTorch module.

    A layer whose weight is called ``<layer>.weight`` in the file becomes the submodule ``<layer>``. The state dict
    holds the weights of convolutions, linear layers and normalisation layers, and running statistics. All other
    constants are in the module, but not in the state dict.

    Args:
        source: the ONNX file as it was read; its graph is changed in place and must not be used afterwards.

    Raises:
        ModelError: onnx2torch does not know an operator, or the weights of a layer cannot be retrained.
    """
    proto, layers = prepare_graph(source)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            module = onnx2torch(proto)
        except Exception as error:
            raise ModelError(f"{_find_unsupported(proto)}: {first_line(error)}") from error
    places = _place_modules(module, layers)
    for layer in module.modules():
        if isinstance(layer, NORMS):
            layer.momentum = 0.1  # PyTorch's default; an inference tool may have written any value
            continue
        for name, value in list(layer.named_buffers(recurse=False)):
            delattr(layer, name)
            layer.register_buffer(name, value, persistent=False)
    if strays := [name for name, _ in module.named_parameters(remove_duplicate=False) if name not in places]:
        raise ModelError(f"parameter {strays[0]} of the PyTorch module has no place in the file")
    return Converted(module.eval(), places, tuple(str(warning.message) for warning in caught))


def _place_modules(module: fx.GraphModule, layers: list[LayerNode]) -> dict[str, tuple[Weight, ...]]:
    """Move each layer's module to its path in the PyTorch module; nodes that call the same layer get one module.

    Returns:
        Name in the state dict -> node inputs in the ONNX file that read the tensor.
    """
    path_of: dict[str, str] = {}
    known: dict[str, str] = {}
    places: dict[str, tuple[Weight, ...]] = {}
    for layer in layers:
        made = module.get_submodule(layer.name)
        path = known.get(layer.key or "")
        if path is None:
            path = _move(module, layer.name, layer.path)
            known[layer.key or layer.name] = path
        path_of[layer.name] = path
        for inner, leaf in made.named_modules():
            if not any(True for _ in leaf.parameters(recurse=False)):
                continue
            prefix = f"{path}.{inner}." if inner else f"{path}."
            for field, weight in zip(_FIELDS, layer.weights, strict=False):
                places[prefix + field] = (*places.get(prefix + field, ()), weight)
            for field in _FIELDS[len(layer.weights) : 2]:
                setattr(leaf, field, None)  # nn.LayerNorm creates a bias even where the file has none
    for node in module.graph.nodes:
        if node.op == "call_module":
            node.target = path_of.get(node.target, node.target)
    module.delete_all_unused_submodules()
    module.recompile()
    return places


def _move(module: fx.GraphModule, name: str, path: str) -> str:
    """Register a submodule under another path, and return the path at which the submodule is used from now on.

    If the new path is taken or is no valid module path, the present name stays in use.
    """
    try:
        module.get_submodule(path)
    except AttributeError:
        with suppress(KeyError):  # a part of the path is empty, or is an attribute of nn.Module
            if module.add_submodule(path, module.get_submodule(name)):
                return path
    return name


def _find_unsupported(model: onnx.ModelProto) -> str:
    """Return a description, for an error message, of the first ONNX node that onnx2torch cannot convert."""
    versions = {entry.domain: entry.version for entry in model.opset_import}
    graph = OnnxGraph(model.graph)
    for node in graph.nodes.values():
        try:
            get_converter(node.operation_type, versions.get(node.domain, 1), node.domain)(node, graph)
        except Exception:  # noqa: PERF203
            kind = f"{node.domain}.{node.operation_type}" if node.domain else node.operation_type
            return f"operator {kind} ({node.output_values[0]})"
    return "the graph"


def _linear(node: Any, graph: Any) -> Any:
    """Convert a ``Linear`` node of :data:`.onnx_layers.DOMAIN` to an ``nn.Linear``; called by onnx2torch."""
    weight, *bias = (graph.initializers[name].to_torch() for name in node.input_values[1:])
    transposed = bool(node.attributes["transposed"])
    weight = weight.T.contiguous() if transposed else weight
    # On `meta`, because the constructor would fill the weights with random numbers first.
    layer = (TransposedLinear if transposed else nn.Linear)(
        weight.shape[1], weight.shape[0], bias=bool(bias), device=torch.device("meta")
    )
    layer.weight = nn.Parameter(weight)
    if bias:
        layer.bias = nn.Parameter(bias[0])
    return OperationConverterResult(layer, OnnxMapping((node.input_values[0],), node.output_values))


def _gelu(node: Any, graph: Any) -> Any:
    """Convert a ``Gelu`` node of :data:`.onnx_layers.DOMAIN` to an ``nn.GELU``; called by onnx2torch."""
    layer = nn.GELU(node.attributes.get("approximate", "none"))
    return OperationConverterResult(layer, onnx_mapping_from_node(node))


add_converter("Linear", version=1, domain=DOMAIN)(_linear)
add_converter("Gelu", version=1, domain=DOMAIN)(_gelu)
