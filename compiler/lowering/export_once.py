"""Export of each architecture once: models of one architecture get the same graph, with their own weights."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..heads import StageModule, as_tuple
from ..passes import clean
from ..passes.edit import replace_constant
from .export import export_stages
from .fingerprint import Fingerprint, fingerprint

__all__ = ["Architecture", "KnownGraphs", "export_once"]

_IR_VERSION = 10
"""ONNX IR version of the graphs that outputs are compared with; the oldest ONNX Runtime that gemel allows reads it."""
_RELATIVE = 1e-3
"""Largest difference between outputs of a graph and of its module, relative to the largest output value."""


@dataclass
class Architecture:
    """Clean graph of a stage without the values of its weights, with the name of the graph that was exported."""

    name: str
    graph: ir.Model
    """Graph of an exported stage, whose weights have no values."""
    weights: Mapping[str, str]
    """Name of an initializer of the graph -> name of the weight in the stage's module."""
    session: ort.InferenceSession | None = None
    """Session that takes the weights as inputs; None before the first comparison."""


KnownGraphs = dict[Fingerprint, Architecture]
"""Graphs that were exported so far in one compilation, by the fingerprints of their stages."""


def export_once(
    stage: StageModule, where: str, name: str, weights: Set[str], known: KnownGraphs
) -> tuple[ir.Model, str | None]:
    """Return a stage of a PyTorch model as a clean ONNX graph, and export each architecture only once.

    If a stage with an equal fingerprint was exported before, its graph is used again with the weights of this stage,
    and its outputs are compared with those of the module on the example inputs. The stage is exported on its own if it
    has no fingerprint, or if outputs differ.

    Args:
        stage: stage to export.
        where: name of the model and stage, for errors.
        name: name to give the graph.
        weights: names of the initializers that are weights.
        known: graphs that were exported before; a new one is added.

    Returns:
        The graph, and the name of the graph that was used again; None if the stage was exported on its own.

    Raises:
        CompileError: the exporter refused the model, or a pass failed.
    """
    stage.module.eval()
    key = fingerprint(stage)
    found = known.get(key) if key is not None else None
    if key is not None and found is not None and _agrees(found, stage, key.weights):
        graph = _with_weights(found, key.weights)
        graph.graph.name = name
        return graph, found.name
    graph = export_stages(stage, where)
    graph.graph.name = name
    clean(graph, weights)
    if key is not None and found is None:
        made = _without_weights(graph, name, key.weights)
        if made is not None:
            # Without the tensors of the first model, which would stay in memory.
            known[replace(key, weights={})] = made
    return graph, None


def _without_weights(graph: ir.Model, name: str, weights: Mapping[str, Tensor]) -> Architecture | None:
    """Return a copy of a clean graph without the values of its weights; None if the module holds other values.

    Args:
        graph: clean graph of an exported stage.
        name: name of the graph.
        weights: weights in the stage's module, by name.
    """
    named = {each.removeprefix("model."): each for each in weights}
    copy = graph.clone()
    found = {each: named[each] for each in copy.graph.initializers if each in named}
    for each, own in found.items():
        value = copy.graph.initializers[each]
        if value.const_value is None or not _same_bytes(value.const_value.numpy(), _array(weights[own])):
            return None
        value.const_value = None
    return Architecture(name, copy, found)


def _same_bytes(one: NDArray[Any], other: NDArray[Any]) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


def _with_weights(known: Architecture, weights: Mapping[str, Tensor]) -> ir.Model:
    """Return a copy of an architecture's graph with the weights of another module."""
    graph = known.graph.clone()
    for name, own in known.weights.items():
        replace_constant(graph.graph.initializers[name], _array(weights[own]))
    return graph


def _agrees(known: Architecture, stage: StageModule, weights: Mapping[str, Tensor]) -> bool:
    """Return whether an architecture's graph with a module's weights gives the module's outputs on example inputs.

    One image of a batch is enough. Outputs that are not finite prove nothing and do not agree.
    """
    inputs = {
        name: value[:1] if stage.free.get(name, {}).get(0) == "batch" else value for name, value in stage.inputs.items()
    }
    try:
        with torch.no_grad():
            wanted = [each.numpy() for each in as_tuple(stage.module(*inputs.values()))]
        if known.session is None:
            known.session = _session(known)
        feeds = {name: value.numpy() for name, value in inputs.items()}
        feeds |= {name: _array(weights[own]) for name, own in known.weights.items()}
        given = known.session.run(list(stage.outputs), feeds)
    except Exception:  # whatever a module or ONNX Runtime refuses: the stage is then exported on its own
        return False
    return all(map(_close, given, wanted)) and len(given) == len(wanted)


def _session(known: Architecture) -> ort.InferenceSession:
    """Return a session of an architecture's graph that takes the weights as inputs, without any optimisation."""
    graph = known.graph.clone()
    graph.ir_version = _IR_VERSION
    for name in known.weights:
        graph.graph.inputs.append(graph.graph.initializers.pop(name))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    data = ir.serde.serialize_model(graph).SerializeToString()
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def _close(given: NDArray[Any], wanted: NDArray[Any]) -> bool:
    """Return whether an output of a graph equals a module's output up to rounding."""
    if given.shape != wanted.shape or given.dtype != wanted.dtype:
        return False
    if wanted.dtype.kind != "f":
        return bool((given == wanted).all())
    largest = float(np.abs(wanted).max(initial=0.0))
    return bool(np.abs(given - wanted).max(initial=0.0) <= _RELATIVE * largest)


def _array(value: Tensor) -> NDArray[Any]:
    """Return the values of a weight as an array that shares the weight's memory where that is possible."""
    return np.asarray(value.detach().contiguous().numpy())
