"""Lowering of one model to ONNX graphs: build or read the model, cut it into stages, export them, clean the graphs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from ...bundles.decode_specs import DecodeSpec
from ...bundles.manifest import InputSpec, Precision
from ...errors import CompileError, GemelError, ModelError, WorkloadError, first_line
from ...workload.document.paths import locate
from ...workload.document.schema import Query
from ...workload.models.factory import build_model
from ..heads import Cut, cut
from ..passes import WidenFloats, clean
from ..recognition import OutputWords
from .export import export_stages, unused_parameters
from .onnx_file import refuse_operators
from .onnx_limits import check_pixels
from .onnx_source import read_onnx

__all__ = ["Lowered", "cut_query", "lower", "words_of"]


@dataclass
class Lowered:
    """Model of a query as ONNX graphs with their weights, as graph passes edit it and the bundle stores it."""

    name: str
    stages: dict[str, ir.Model]
    """Stage name -> ONNX graph of the stage. Later passes edit the graphs in place."""
    decode: DecodeSpec
    input: InputSpec
    tensors: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    """Tensors that the spec of the model's decoder refers to (anchors), by the names in the spec."""
    precision: Precision = "fp32"
    labels: tuple[str, ...] | None = None
    """Names of the classes that the model's module or file carries; None if it carries none."""
    unused: tuple[str, ...] = ()
    """Names of the parameters of a PyTorch module that reach no used output and are left out."""


def lower(query: Query, root: Path) -> Lowered:
    """Turn the model of a query into ONNX graphs, one per stage, with the spec of the decoder for its outputs.

    Args:
        query: query of the workload; the model gets its name.
        root: folder that relative paths start from.

    Raises:
        ModelError: the model cannot be built as the workload describes it, or an operator cannot be compiled.
        CompileError: the model cannot be exported. All messages name the query.
    """
    with _named(query):
        if query.model.input.size is not None:
            check_pixels(query.model.input.size, f"query {query.name}")
        if query.model.onnx is not None:
            return _lower_onnx(query, query.model.onnx, root)
        return _lower_module(query, root)


def _lower_onnx(query: Query, reference: str, root: Path) -> Lowered:
    """Read the ONNX file of a query's model, and return the model as one clean float32 graph."""
    path = locate(reference, root, f"query {query.name}: onnx")
    source = read_onnx(path, query.task, query.model.input, words_of(query))
    WidenFloats()(source.model)
    source.model.graph.name = query.name
    clean(source.model, source.weights)
    return Lowered(query.name, {"main": source.model}, source.decode, source.input, labels=source.labels)


def _lower_module(query: Query, root: Path) -> Lowered:
    """Build the PyTorch module of a query's model, and return the model as one clean ONNX graph per stage."""
    parts = cut_query(query, root)
    weights = {name.removeprefix("model.") for name in parts.stages["main"].module.state_dict()}
    stages = {}
    for name, stage in parts.stages.items():
        where = f"query {query.name}" if name == "main" else f"query {query.name}, stage {name}"
        stages[name] = export_stages(stage, where)
        stages[name].graph.name = query.name if name == "main" else f"{query.name}.{name}"
        clean(stages[name], weights)
        refuse_operators(stages[name], where)
    unused = unused_parameters(parts.stages["main"].module, stages.values())
    return Lowered(
        query.name, stages, parts.decode, parts.input, dict(parts.tensors), labels=parts.labels, unused=unused
    )


def words_of(query: Query) -> OutputWords:
    """Return the settings of a query about its model's outputs: decoder, activation, labels and names of outputs."""
    return OutputWords(query.decode, query.activation, query.labels, query.model.outputs)


@contextlib.contextmanager
def _named(query: Query) -> Iterator[None]:
    """Make every error that is raised in the ``with`` block name a query and its model."""
    name = f"query {query.name}"
    try:
        yield
    except (CompileError, ModelError, WorkloadError) as error:
        if str(error).startswith(name):
            raise
        raise type(error)(f"{name}: {error}") from error
    except GemelError:
        raise
    except Exception as error:
        origin = query.model.onnx or query.model.factory
        what = f"{type(error).__name__}: {first_line(error)}"
        raise CompileError(f"{name}: {origin}: cannot be compiled: {what}") from error


def cut_query(query: Query, root: Path) -> Cut:
    """Build a query's PyTorch model with its weights, and cut it for the input that the workload asks for.

    Raises:
        ModelError: the model cannot be built as the workload describes it, or cannot be cut.
    """
    given = query.model.input.model_dump(exclude_none=True)
    with _named(query), torch.no_grad():
        module = build_model(query.model, root, query.name)
        return cut(module, query.task, InputSpec.model_construct(_fields_set=set(given), **given), words_of(query))
