"""Conversion of model graphs to int8 or fp16, with the precision and value ranges that a calibration holds."""

from __future__ import annotations

from collections.abc import Sequence, Set

import onnx_ir as ir

from ..compiler.compile import CompileProgress
from ..compiler.lowering.lower import Lowered
from .fp16 import to_fp16
from .latency import cpu_latencies
from .quantize import quantize
from .record import Calibration, ModelRecord
from .weights import WeightUse

__all__ = ["apply_calibration", "in_precision"]

_NAMED = 4
"""Maximum number of float32 layers to name in a model's progress line; calibration.json names all of them."""


def in_precision(graph: ir.Model, record: ModelRecord, keep: Set[str]) -> ir.Model:
    """Return a copy of a float32 graph, converted to int8 or fp16 as a model's calibration record says.

    Args:
        graph: float32 graph of one stage of a model, after all graph passes of the compiler; not changed.
        record: precision to convert to, and largest absolute values of activations.
        keep: names of weights that stay float32.
    """
    if record.precision == "fp16":
        return to_fp16(graph, keep, record.peaks)
    made = graph.clone()
    quantize(made, record.peaks, keep)
    return made


def apply_calibration(
    models: Sequence[Lowered], weights: WeightUse, calibration: Calibration, step: CompileProgress
) -> dict[str, tuple[float, float]]:
    """Convert the models that a calibration lists to the precisions that it states for them, in place.

    Args:
        models: all models of the workload.
        weights: index of all models' weights, before conversion to lower precision.
        calibration: precision and value ranges of each model, and kernels that stay float32.
        step: called with the stage ``convert`` and a line of text for each model.

    Returns:
        Name of each int8 model -> CPU time in milliseconds of one run in float32 and of one run in int8; see
        :mod:`.latency`.
    """
    by_name = {model.name: model for model in models}
    times = {}
    for name, record in calibration.models.items():
        model, original = by_name[name], weights.graphs[name]
        keep = weights.in_model(name, calibration.kept)
        model.stages["main"] = in_precision(original, record, keep)
        model.precision = record.precision
        if record.precision == "int8":
            times[name] = cpu_latencies(original, model.stages["main"])
        step("convert", f"{name}: {record.precision}, {_described(keep, weights.layers[name].keys())}")
    for name, reason in calibration.refused.items():
        step("convert", f"{name}: stays float32: {reason}")
    return times


def _described(keep: Set[str], layers: Set[str]) -> str:
    """Return text that says how many of a model's layers stay float32, and names the first four of these layers."""
    left = sorted(keep & layers)
    names = f": {', '.join(left[:_NAMED])}{', ...' if len(left) > _NAMED else ''}" if left else ""
    return f"{len(left)} of {len(layers)} layers stay float32{names}"
