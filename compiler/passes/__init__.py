"""Passes that edit ONNX graphs. Each has requirements, does one thing and reports whether it changed the model.

The order, for one stage of one model::

    WidenFloats          ONNX sources only: float16 becomes float32
    DropInventedBiases   exported graphs only; before folding, while invented biases can be told from trained ones
    FoldConstants        nodes that touch no weight
    LiftConstants        Constant nodes become initializers (ONNX sources hold weights there)
    FusePad              zero padding becomes part of the convolution behind it
    CleanUp              identities, unused nodes, notes
    ScaleToBatchNorm     scales and shifts behind convolutions; not for merging, which would take BatchNorms as trained
    -- over all models: choose_batch_norm finds the kernels that are shared under different BatchNorms --
    FoldBatchNorm        every BatchNorm except those behind such kernels
    BatchNormToConv      the kept BatchNorms become depthwise 1x1 convolutions
    CleanUp
"""

from __future__ import annotations

from collections.abc import Set

import onnx_ir as ir

from ...errors import CompileError
from .batch_norm import BatchNormChoice, BatchNormToConv, FoldBatchNorm, choose_batch_norm
from .clean import CleanUp, DropInventedBiases, FoldConstants, LiftConstants
from .pad import FusePad
from .scale import ScaleToBatchNorm
from .widen import WidenFloats

__all__ = [
    "BatchNormChoice",
    "BatchNormToConv",
    "CleanUp",
    "DropInventedBiases",
    "FoldBatchNorm",
    "FoldConstants",
    "FusePad",
    "LiftConstants",
    "ScaleToBatchNorm",
    "WidenFloats",
    "choose_batch_norm",
    "clean",
    "fold",
    "name_batch_norms",
]


def clean(model: ir.Model, weights: Set[str]) -> None:
    """Clean an ONNX graph that was exported or read from a file, as later passes and the merge analysis require.

    Args:
        model: graph to edit in place.
        weights: names of the initializers that are weights.

    Raises:
        CompileError: a pass failed; the message names the graph.
    """
    _run(model, FoldConstants(weights), LiftConstants(), FusePad(), CleanUp())


def name_batch_norms(model: ir.Model) -> None:
    """Turn every scale and shift behind a convolution of a graph into a BatchNorm, which :func:`fold` can fold.

    Raises:
        CompileError: a pass failed; the message names the graph.
    """
    _run(model, ScaleToBatchNorm())


def fold(model: ir.Model, keep: Set[str]) -> None:
    """Fold every BatchNorm of a graph into its convolution, except those behind the kernels in ``keep``.

    Args:
        model: graph to edit in place.
        keep: tensor ids of the kernels whose BatchNorms stay.

    Raises:
        CompileError: a pass failed; the message names the graph.
    """
    _run(model, FoldBatchNorm(keep), BatchNormToConv(), CleanUp())


def _run(model: ir.Model, *passes: ir.passes.PassBase) -> None:
    try:
        ir.passes.Sequential(*passes)(model)
    except ir.passes.PassError as error:
        raise CompileError(f"{model.graph.name}: {error}: {error.__cause__}") from error
