"""Measurements on frames before conversion to int8 or fp16: value ranges and float32 accuracy of each model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from ..compiler.compile import CompileProgress
from ..workload.document.schema import Workload
from .judge import Judge, judges_of
from .quantize import observed
from .ranges import Method, peaks_of, too_large
from .record import CALIBRATION, LowerPrecision, ModelRecord
from .request import PrecisionSettings, accuracy_floor
from .reuse import can_reuse_ranges, graph_digest
from .weights import WeightUse

__all__ = ["Measured", "measure_models"]


@dataclass(frozen=True)
class Measured:
    """Value ranges and accuracy floors (minimum accuracies) of the models to convert, and objects that measure them."""

    records: dict[str, ModelRecord]
    """Model -> the model's requested precision and value ranges."""
    judges: dict[str, Judge]
    """Model -> images and float32 outputs that the model's accuracy is measured against."""
    floors: dict[str, float]
    """Query -> accuracy that the query must keep in lower precision, from 0 to 1."""
    refused: dict[str, str]
    """Name of each model that stays float32 -> the reason."""


def measure_models(
    weights: WeightUse,
    workload: Workload,
    wanted: Mapping[str, LowerPrecision],
    settings: PrecisionSettings,
    step: CompileProgress,
) -> Measured:
    """Measure value ranges on frames, and accuracies in float32, of the models to convert to lower precision.

    Value ranges of an earlier calibration are reused for models whose weights and frames have not changed.

    Args:
        weights: index of all models' weights, before conversion to lower precision.
        workload: queries, and where their images are.
        wanted: model -> lower precision that its queries ask for.
        settings: method that chooses value ranges, and the calibration of an earlier compilation.
        step: called with the stage ``ranges`` and a line of text for each model.

    Raises:
        DataError: a query has no images to calibrate on and to measure accuracy on.
        CalibrationError: frames do not fit a model, or a value is the same on all frames or not finite.
    """
    refused = {name: "it is quantised already" for name in wanted if _is_quantized(weights.graphs[name])}
    graphs = {name: weights.graphs[name] for name in wanted if name not in refused}
    earlier = settings.reusable.models if settings.reusable is not None else {}
    records, judges, floors = dict[str, ModelRecord](), dict[str, Judge](), dict[str, float]()
    for name, judge in judges_of(workload, graphs, refused):
        judges[name] = judge
        for each in judge.queries:
            floors[each.query.name] = accuracy_floor(each.query, each.accuracy, settings.merged)
        old = earlier.get(name)
        records[name] = _record(graphs[name], wanted[name], judge, settings.method, old)
        if wanted[name] == "int8":
            new = f"{settings.method} of {len(judge.frames)} frames"
            step("ranges", f"{name}: {f'those of {CALIBRATION}' if records[name] is old else new}")
        elif records[name].peaks:
            step("ranges", f"{name}: {len(records[name].peaks)} values are too large for float16")
    return Measured(records, judges, floors, refused)


def _record(
    graph: ir.Model, precision: LowerPrecision, judge: Judge, method: Method, old: ModelRecord | None
) -> ModelRecord:
    """Return a model's old calibration record if it is still valid; otherwise measure value ranges for a new one."""
    model = graph_digest(graph)
    if old is not None and can_reuse_ranges(old, precision, model, judge.digest, graph):
        return old
    if precision == "int8":
        peaks = peaks_of(graph, observed(graph), judge.frames, method)
    else:
        peaks = too_large(graph, judge.frames)
    return ModelRecord(precision=precision, model=model, data=judge.digest, frames=len(judge.frames), peaks=peaks)


def _is_quantized(graph: ir.Model) -> bool:
    """Return whether a graph has nodes that quantize or dequantize values."""
    return any("QuantizeLinear" in node.op_type or node.op_type == "DequantizeLinear" for node in graph.graph)
