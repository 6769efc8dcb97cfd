"""Lowering of one model: build or read the model, cut it into stages, export them, clean the graphs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from ...bundles.decode_specs import DecodeSpec
from ...bundles.manifest import InputSpec, Precision
from ...workload.document.paths import locate
from ...workload.document.schema import Query
from ...workload.models.factory import build_model
from ..heads import Cut, cut
from ..passes import clean
from . import onnx_source
from .export import export_stages

__all__ = ["Lowered", "cut_query", "lower"]


@dataclass
class Lowered:
    """Model as graphs with their weights."""

    name: str
    stages: dict[str, ir.Model]
    """Stage name -> graph. Later passes edit the graphs in place."""
    decode: DecodeSpec
    input: InputSpec
    tensors: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    """Tensors that ``decode`` refers to, by the names that it uses."""
    precision: Precision = "fp32"


def lower(query: Query, root: Path) -> Lowered:
    """Lower the model of a query.

    Args:
        query: query of the workload; the model gets its name.
        root: folder that relative paths start from.

    Raises:
        ModelError: the model cannot be built as the workload describes it.
        CompileError: the model cannot be exported.
    """
    if query.model.onnx is not None:
        path = locate(query.model.onnx, root, f"query {query.name}: onnx")
        source = onnx_source.read_onnx(path, query.task, query.model.input)
        source.model.graph.name = query.name
        clean(source.model, source.weights)
        return Lowered(query.name, {"main": source.model}, source.decode, source.input)
    parts = cut_query(query, root)
    weights = {name.removeprefix("model.") for name in parts.stages["main"].module.state_dict()}
    stages = {}
    for name, stage in parts.stages.items():
        stages[name] = export_stages(
            stage, f"query {query.name}" if name == "main" else f"query {query.name}, stage {name}"
        )
        stages[name].graph.name = query.name if name == "main" else f"{query.name}.{name}"
        clean(stages[name], weights)
    return Lowered(query.name, stages, parts.decode, parts.input, dict(parts.tensors))


def cut_query(query: Query, root: Path) -> Cut:
    """Build a query's PyTorch model with its weights, and cut it for the input that the workload asks for.

    Raises:
        ModelError: the model cannot be built as the workload describes it, or cannot be cut.
    """
    given = query.model.input.model_dump(exclude_none=True)
    with torch.no_grad():
        module = build_model(query.model, root, query.name)
        return cut(module, query.task, InputSpec.model_construct(_fields_set=set(given), **given))
