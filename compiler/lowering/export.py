"""Export from PyTorch to ONNX, with every weight under its name in the state dict.

``torch.onnx.export`` runs with ``optimize=False``: its optimiser folds BatchNorm into convolutions, after which two
models with one merged kernel have different kernels again. :mod:`gemel.compiler.passes` clean up instead, and know what
is shared.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import onnx_ir as ir
import torch
from onnxscript import opset20
from torch import nn
from torch.export import Dim

from ...errors import CompileError, first_line
from ..heads import StageModule
from ..passes import DropInventedBiases

__all__ = ["export_stages", "run_exporter", "unused_parameters"]

_OPSET = 20
"""Version of ONNX's operator set to export: the newest that TensorRT 10.3 (JetPack 6) parses."""


def export_stages(stage: StageModule, name: str) -> ir.Model:
    """Export one stage of a PyTorch model, in eval mode, to an ONNX graph.

    Args:
        stage: stage to export.
        name: name of the model and stage, for errors.

    Returns:
        The exporter's graph, without the biases that the exporter invents. Initializers have the names of the original
        model's state dict.

    Raises:
        CompileError: the exporter refused the model.
    """
    model: ir.Model = run_exporter(stage, name, optimize=False).model
    for value in list(model.graph.initializers.values()):
        if value.name is not None and value.name.startswith("model."):
            value.name = value.name.removeprefix("model.")
    _name_free_dimensions(model, stage)
    DropInventedBiases()(model)
    return model


def unused_parameters(module: nn.Module, graphs: Iterable[ir.Model]) -> tuple[str, ...]:
    """Return the parameters of a model that no exported graph has, because they reach no output that is used.

    Args:
        module: a stage; its attribute ``model`` is the whole model.
        graphs: the graphs of all stages, cleaned, before BatchNorms are folded.
    """
    exported = {name for graph in graphs for name in graph.graph.initializers}
    model = module.model
    assert isinstance(model, nn.Module)
    # A parameter that the model holds under two names has only one of them in a graph.
    used = {id(value) for name, value in model.named_parameters(remove_duplicate=False) if name in exported}
    return tuple(name for name, value in model.named_parameters() if id(value) not in used)


def run_exporter(stage: StageModule, name: str, *, optimize: bool) -> torch.onnx.ONNXProgram:
    """Export one stage of a PyTorch model with ``torch.onnx.export``, whose notes are silenced.

    Args:
        stage: stage to export.
        name: name of the model and stage, for errors.
        optimize: whether to fold and fuse, as PyTorch does by default.

    Raises:
        CompileError: the exporter refused the model.
    """
    free = tuple(dict.fromkeys(stage.free.get(port, {}), Dim.DYNAMIC) for port in stage.inputs)
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                stage.module.eval(),
                tuple(stage.inputs.values()),
                dynamo=True,
                optimize=optimize,
                opset_version=_OPSET,
                input_names=list(stage.inputs),
                output_names=list(stage.outputs),
                dynamic_shapes=free,
                verbose=False,
                custom_translation_table={torch.ops.aten._is_all_true.default: _is_all_true},
            )
    except Exception as error:
        raise CompileError(f"{name}: torch.onnx.export failed: {_reason(error)}") from error
    if program is None:
        raise CompileError(f"{name}: torch.onnx.export returned nothing")
    return program


def _is_all_true(self: Any) -> Any:
    """Translate ``aten._is_all_true``, which PyTorch's exporter does not know, to ONNX.

    ``torch._check_tensor_all`` makes the operator, in RT-DETRv2 and Deformable DETR of Hugging Face among others. The
    exporter drops the check itself, so that the translation never runs.
    """
    op: Any = opset20
    return op.Cast(op.ReduceMin(op.Cast(self, to=ir.DataType.INT32), keepdims=0), to=ir.DataType.BOOL)


def _reason(error: BaseException) -> str:
    """Return why the exporter failed, in one line: the first cause, because the exporter only says that it failed."""
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    text = first_line(cause)
    if found := re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", str(cause)):
        text = f"no ONNX operator is known for {found[1]}; replace it in the module, or give an ONNX file of the model"
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def _name_free_dimensions(model: ir.Model, stage: StageModule) -> None:
    """Rename the free dimensions of an exported graph: the exporter's names (``s77``) to the stage's (``batch``)."""
    names: dict[str, str] = {}
    for port in model.graph.inputs:
        for axis, name in stage.free.get(port.name or "", {}).items():
            if port.shape is not None:
                names[str(port.shape[axis])] = name
    for port in (*model.graph.inputs, *model.graph.outputs):
        if port.shape is not None:
            port.shape = ir.Shape(
                [dim if isinstance(dim, int) else ir.SymbolicDim(names.get(str(dim), str(dim))) for dim in port.shape]
            )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the notes of PyTorch's exporter about its own internals, which are of no use to a user of gemel."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
