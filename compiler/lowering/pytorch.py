"""Lowering of one PyTorch model to ONNX graphs: build the module, cut it into stages, export and clean them.

Only this module and those that it imports need PyTorch: a workload of ONNX files is compiled without.
"""

from __future__ import annotations

from pathlib import Path

import torch

from ...bundles.manifest import InputSpec
from ...workload.document.schema import Query
from ...workload.models.factory import build_model
from ..heads import Cut, cut
from .export import unused_parameters
from .export_once import KnownGraphs, export_once
from .lower import Lowered, name_errors, words_of
from .onnx_file import refuse_operators

__all__ = ["cut_query", "lower_module"]


def lower_module(query: Query, root: Path, known: KnownGraphs) -> Lowered:
    """Build the PyTorch module of a query's model, and return the model as one clean ONNX graph per stage.

    Args:
        query: query of the workload; the model gets its name.
        root: folder that relative paths start from.
        known: graphs of the models that were exported before, which are used again for models of the same
            architecture.
    """
    parts = cut_query(query, root)
    weights = {name.removeprefix("model.") for name in parts.stages["main"].module.state_dict()}
    stages, twins = {}, []
    for name, stage in parts.stages.items():
        where = f"query {query.name}" if name == "main" else f"query {query.name}, stage {name}"
        graph_name = query.name if name == "main" else f"{query.name}.{name}"
        stages[name], twin = export_once(stage, where, graph_name, weights, known)
        refuse_operators(stages[name], where)
        twins.append(twin)
    unused = unused_parameters(parts.stages["main"].module, stages.values())
    return Lowered(
        query.name,
        stages,
        parts.decode,
        parts.input,
        dict(parts.tensors),
        labels=parts.labels,
        unused=unused,
        twin=twins[0] if all(twins) else None,
    )


def cut_query(query: Query, root: Path) -> Cut:
    """Build a query's PyTorch model with its weights, and cut it for the input that the workload asks for.

    Raises:
        ModelError: the model cannot be built as the workload describes it, or cannot be cut.
    """
    given = query.model.input.model_dump(exclude_none=True)
    with name_errors(query), torch.no_grad():
        module = build_model(query.model, root, query.name)
        return cut(module, query.task, InputSpec.model_construct(_fields_set=set(given), **given), words_of(query))
