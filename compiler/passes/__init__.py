"""Graph passes. Each requires something, does one thing and says whether it changed the model.

The order, for one stage of one model::

    DropInventedBiases   for exported graphs only: before folding, while they can be told from trained biases
    FoldConstants        all that touches no weight
    LiftConstants        Constant nodes become initializers (ONNX sources hold weights there)
    FusePad              zero padding becomes part of the convolution behind it
    CleanUp              identities, unused nodes, notes
    -- here the whole workload is looked at: which kernels are shared under different BatchNorms --
    FoldBatchNorm        every other one
    BatchNormToConv      the kept ones, as depthwise 1x1 convolutions
    CleanUp
"""

from __future__ import annotations

from collections.abc import Set

import onnx_ir as ir

from ...errors import CompileError
from .batch_norm import BatchNormChoice, BatchNormToConv, FoldBatchNorm, choose_batch_norm
from .clean import CleanUp, DropInventedBiases, FoldConstants, LiftConstants
from .pad import FusePad

__all__ = [
    "BatchNormChoice",
    "BatchNormToConv",
    "CleanUp",
    "DropInventedBiases",
    "FoldBatchNorm",
    "FoldConstants",
    "FusePad",
    "LiftConstants",
    "choose_batch_norm",
    "clean",
    "fold",
]


def clean(model: ir.Model, weights: Set[str]) -> None:
    """Bring a graph, as it was exported or read, into the form that the other passes and the analysis require.

    Raises:
        CompileError: a pass failed; the message names the graph.
    """
    _run(model, FoldConstants(weights), LiftConstants(), FusePad(), CleanUp())


def fold(model: ir.Model, keep: Set[str]) -> None:
    """Fold every BatchNorm but those behind the kernels in ``keep`` (tensor ids)."""
    _run(model, FoldBatchNorm(keep), BatchNormToConv(), CleanUp())


def _run(model: ir.Model, *passes: ir.passes.PassBase) -> None:
    try:
        ir.passes.Sequential(*passes)(model)
    except ir.passes.PassError as error:
        raise CompileError(f"{model.graph.name}: {error}: {error.__cause__}") from error
