"""Lowering of one model to ONNX graphs: read an ONNX file, or have :mod:`.pytorch` export a PyTorch module."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...bundles.decode_specs import DecodeSpec
from ...bundles.manifest import InputSpec, Precision
from ...console import missing_extra
from ...errors import CompileError, GemelError, ModelError, WorkloadError, first_line
from ...workload.document.paths import locate
from ...workload.document.schema import Query
from ..passes import WidenFloats, clean
from ..recognition import OutputWords
from .onnx_limits import check_pixels
from .onnx_source import read_onnx

if TYPE_CHECKING:
    from .export_once import KnownGraphs

__all__ = ["Lowered", "lower", "name_errors", "words_of"]


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
    twin: str | None = None
    """Model of the same architecture whose exported graph was used again with this model's weights; None if there is
    none."""


def lower(query: Query, root: Path, known: KnownGraphs | None = None) -> Lowered:
    """Turn the model of a query into ONNX graphs, one per stage, with the spec of the decoder for its outputs.

    Args:
        query: query of the workload; the model gets its name.
        root: folder that relative paths start from.
        known: graphs of PyTorch models that were exported before, to use again for models of the same architecture.

    Raises:
        MissingExtraError: the model is a PyTorch module, and PyTorch is not installed.
        ModelError: the model cannot be built as the workload describes it, or an operator cannot be compiled.
        CompileError: the model cannot be exported. All messages name the query.
    """
    with name_errors(query):
        if query.model.input.size is not None:
            check_pixels(query.model.input.size, f"query {query.name}")
        if query.model.onnx is not None:
            return _lower_onnx(query, query.model.onnx, root)
        try:
            from .pytorch import lower_module
        except ModuleNotFoundError as error:
            raise missing_extra(error, f"query {query.name}: a model from a factory", "compiler") from error
        return lower_module(query, root, {} if known is None else known)


def _lower_onnx(query: Query, reference: str, root: Path) -> Lowered:
    """Read the ONNX file of a query's model, and return the model as one clean float32 graph."""
    path = locate(reference, root, f"query {query.name}: onnx")
    source = read_onnx(path, query.task, query.model.input, words_of(query))
    WidenFloats()(source.model)
    source.model.graph.name = query.name
    clean(source.model, source.weights)
    return Lowered(query.name, {"main": source.model}, source.decode, source.input, labels=source.labels)


def words_of(query: Query) -> OutputWords:
    """Return the settings of a query about its model's outputs: decoder, activation, labels and names of outputs."""
    return OutputWords(query.decode, query.activation, query.labels, query.model.outputs)


@contextlib.contextmanager
def name_errors(query: Query) -> Iterator[None]:
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
