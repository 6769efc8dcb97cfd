"""ONNX graphs as PyTorch modules of ordinary layers, through onnx2torch."""

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
"""What a layer calls its weights, in the order of an ONNX node's inputs."""


class TransposedLinear(nn.Linear):
    """A linear layer whose weight the file holds as ``[inputs, outputs]``.

    It is a kind of its own: with an ordinary one it could be equal here, and would still be other bytes in the file.
    """


@dataclass(frozen=True)
class Converted:
    module: fx.GraphModule
    """In eval mode; returns what the graph does, in its order."""
    places: dict[str, tuple[Weight, ...]]
    """Every parameter and running statistic, by its name in the state dict, and where it stands in the file."""
    notes: tuple[str, ...]
    """What onnx2torch warns of."""


def convert(source: OnnxSource) -> Converted:
    """Make a module of a graph.

    Weights are called as in the file where that calls them ``<layer>.weight``. The state dict holds the weights of
    convolutions, linear layers and normalisation, and running statistics; every other constant stays as it is.

    Args:
        source: its model is used up.

    Raises:
        ModelError: an operator that onnx2torch does not know, or a layer whose weights cannot be retrained.
    """
    proto, layers = prepare_graph(source)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            module = onnx2torch(proto)
        except Exception as error:
            raise ModelError(f"{_culprit(proto)}: {first_line(error)}") from error
    places = _named(module, layers)
    for layer in module.modules():
        if isinstance(layer, NORMS):
            layer.momentum = 0.1  # PyTorch's; a file from an inference tool may say anything
            continue
        for name, value in list(layer.named_buffers(recurse=False)):
            delattr(layer, name)
            layer.register_buffer(name, value, persistent=False)
    if strays := [name for name, _ in module.named_parameters(remove_duplicate=False) if name not in places]:
        raise ModelError(f"parameter {strays[0]} of the PyTorch module has no place in the file")
    return Converted(module.eval(), places, tuple(str(warning.message) for warning in caught))


def _named(module: fx.GraphModule, layers: list[LayerNode]) -> dict[str, tuple[Weight, ...]]:
    """Call modules as the layers say, let equal ones be one, and find where each weight stands."""
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
                setattr(leaf, field, None)  # nn.LayerNorm makes a bias where the file has none
    for node in module.graph.nodes:
        if node.op == "call_module":
            node.target = path_of.get(node.target, node.target)
    module.delete_all_unused_submodules()
    module.recompile()
    return places


def _move(module: fx.GraphModule, name: str, path: str) -> str:
    """Put a module at another path; where that is taken, or no path, it stays."""
    try:
        module.get_submodule(path)
    except AttributeError:
        with suppress(KeyError):  # an empty part, or a name that modules need themselves
            if module.add_submodule(path, module.get_submodule(name)):
                return path
    return name


def _culprit(model: onnx.ModelProto) -> str:
    """The first node that cannot be converted."""
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
    weight, *bias = (graph.initializers[name].to_torch() for name in node.input_values[1:])
    transposed = bool(node.attributes["transposed"])
    weight = weight.T.contiguous() if transposed else weight
    # On `meta`, as a layer fills its weights with random numbers first.
    layer = (TransposedLinear if transposed else nn.Linear)(
        weight.shape[1], weight.shape[0], bias=bool(bias), device=torch.device("meta")
    )
    layer.weight = nn.Parameter(weight)
    if bias:
        layer.bias = nn.Parameter(bias[0])
    return OperationConverterResult(layer, OnnxMapping((node.input_values[0],), node.output_values))


def _gelu(node: Any, graph: Any) -> Any:
    layer = nn.GELU(node.attributes.get("approximate", "none"))
    return OperationConverterResult(layer, onnx_mapping_from_node(node))


add_converter("Linear", version=1, domain=DOMAIN)(_linear)
add_converter("Gelu", version=1, domain=DOMAIN)(_gelu)
