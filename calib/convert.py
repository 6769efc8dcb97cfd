"""Conversion of a workload's models to lower precision: plan, calibrate, verify, apply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..compiler.compile import CompileProgress
from ..compiler.lowering.lower import Lowered
from ..workload.document.schema import Workload
from .apply import apply_calibration
from .measure import measure_models
from .opset import raised
from .record import Calibration, LowerPrecision
from .request import PrecisionSettings, precisions_of
from .reuse import adopt_calibration, is_unchanged
from .verify import hold_floors
from .weights import WeightUse

__all__ = ["PrecisionReport", "convert_precision"]


@dataclass(frozen=True)
class PrecisionReport:
    """Result of converting the models of a workload to lower precision."""

    calibration: Calibration
    """Ranges, layers that stay float32, and accuracies; the content of calibration.json."""
    times: Mapping[str, tuple[float, float]]
    """Model that is int8 -> milliseconds of CPU time of a run in float32 and in int8; see :mod:`.latency`."""


def convert_precision(
    models: Sequence[Lowered],
    workload: Workload,
    settings: PrecisionSettings,
    step: CompileProgress = lambda name, what: None,
) -> PrecisionReport | None:
    """Convert models, in place, to the precision that their queries ask for.

    Kernels that several models share stay one tensor: if one of the models wants the kernel in another form, or loses
    too much accuracy with it in lower precision, the kernel stays float32 in all of them.

    Args:
        models: all distinct models of the workload, after all passes.
        workload: queries with their precisions, targets and images.
        settings: precision of the other queries, and how to calibrate.
        step: called with the name of each finished stage and a line of text on what it did.

    Returns:
        The calibration that was applied; None if no query asks for lower precision.

    Raises:
        DataError: a query has no images to calibrate on and to judge by.
        CompileError: a graph from an ONNX file has operators that are too old and cannot be converted.
        CalibrationError: frames do not fit a model; or the given calibration is of other models, or does not keep the
            targets of the workload.
    """
    wanted = {
        name: precision
        for name, precision in precisions_of(workload, settings.precision).items()
        if precision != "fp32"
    }
    if not wanted:
        return None
    for model in models:
        if model.name in wanted:
            model.stages["main"] = raised(model.stages["main"])
    weights = WeightUse(models)
    if settings.given is not None:
        calibration = adopt_calibration(settings.given, weights, workload, wanted, settings.merged)
    else:
        calibration = _calibrate(weights, workload, wanted, settings, step)
    times = apply_calibration(models, weights, calibration, step)
    return PrecisionReport(calibration, times)


def _calibrate(
    weights: WeightUse,
    workload: Workload,
    wanted: Mapping[str, LowerPrecision],
    settings: PrecisionSettings,
    step: CompileProgress,
) -> Calibration:
    """Calibrate on frames; the search for float32 layers is skipped if an earlier one had the same input."""
    measured = measure_models(weights, workload, wanted, settings, step)
    contested = weights.contested(measured.records)
    earlier = settings.reusable
    if earlier is not None and is_unchanged(earlier, measured.records, measured.refused, measured.floors, contested):
        return earlier
    return hold_floors(weights, measured, settings.method, step)
