"""PyTorch to ONNX, with every weight under its name in the state dict.

``torch.onnx.export`` with ``optimize=False``: its own optimiser folds BatchNorm into convolutions, after which
two models with one merged kernel have different kernels again. What it would have cleaned up is done by
:mod:`gemel.compiler.passes`, which know what is shared.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import onnx_ir as ir
import torch
from torch.export import Dim

from ...errors import CompileError, first_line
from ..heads import StageModule
from ..passes import DropInventedBiases

__all__ = ["export_stages", "run_exporter"]

_OPSET = 20
"""The newest opset that TensorRT 10.3 (JetPack 6) parses."""


def export_stages(stage: StageModule, name: str) -> ir.Model:
    """Export one stage in eval mode.

    Args:
        stage: module, example inputs, names of outputs, free dimensions.
        name: what the model is called in errors.

    Returns:
        The graph as the exporter makes it, without the biases that it invents; initializers are called as in the
        original model's state dict.

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


def run_exporter(stage: StageModule, name: str, *, optimize: bool) -> torch.onnx.ONNXProgram:
    """Call PyTorch's exporter.

    Args:
        stage: module, example inputs, names of outputs, free dimensions.
        name: what the model is called in errors.
        optimize: fold and fuse as PyTorch does by default.

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
            )
    except Exception as error:
        raise CompileError(f"{name}: torch.onnx.export failed: {first_line(error)}") from error
    if program is None:
        raise CompileError(f"{name}: torch.onnx.export returned nothing")
    return program


def _name_free_dimensions(model: ir.Model, stage: StageModule) -> None:
    """Call free dimensions what the stage calls them (``batch``), not what the exporter invented (``s77``)."""
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
    """The exporter's notes about its own internals are of no use to the user of a compiler."""
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
