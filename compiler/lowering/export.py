"""Export from PyTorch to ONNX, with every weight under its name in the state dict.

``torch.onnx.export`` runs with ``optimize=False``: its optimiser folds BatchNorm into convolutions, after which two
models with one merged kernel have different kernels again. :mod:`gemel.compiler.passes` clean up instead, and know what
is shared.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterable, Iterator

import onnx_ir as ir
import torch
from torch import nn
from torch.export import Dim

from ...errors import CompileError, first_line
from ..heads import StageModule
from ..passes import DropInventedBiases

__all__ = ["export_stages", "run_exporter", "unused_parameters"]

_OPSET = 20
"""The newest opset that TensorRT 10.3 (JetPack 6) parses."""


def export_stages(stage: StageModule, name: str) -> ir.Model:
    """Export one stage in eval mode.

    Args:
        stage: stage to export.
        name: name of the model in errors.

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
    """Call PyTorch's exporter.

    Args:
        stage: stage to export.
        name: name of the model in errors.
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
            )
    except Exception as error:
        raise CompileError(f"{name}: torch.onnx.export failed: {first_line(error)}") from error
    if program is None:
        raise CompileError(f"{name}: torch.onnx.export returned nothing")
    return program


def _name_free_dimensions(model: ir.Model, stage: StageModule) -> None:
    """Give free dimensions the stage's names (``batch``) in place of the exporter's (``s77``)."""
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
    """Silence the exporter's notes about its own internals, which are of no use to a user of gemel."""
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
