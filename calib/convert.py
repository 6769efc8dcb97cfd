"""Conversion of a workload's models to int8 or fp16: choose precisions, calibrate, verify accuracy, convert graphs."""

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
    """Value ranges, layers that stay float32, and accuracies of a workload's models: the content of
    calibration.json."""
    times: Mapping[str, tuple[float, float]]
    """Name of each int8 model -> CPU time in milliseconds of one run in float32 and of one run in int8."""


def convert_precision(
    models: Sequence[Lowered],
    workload: Workload,
    settings: PrecisionSettings,
    step: CompileProgress = lambda name, what: None,
) -> PrecisionReport | None:
    """Convert the models whose queries ask for int8 or fp16 to that precision, in place.

    A kernel that several models share is still one tensor after the conversion. The kernel therefore stays float32 in
    all these models in two cases: the models would need different converted values of the kernel (another precision,
    or int8 scales along another axis), or a query of one model would lose too much accuracy by the conversion.

    Args:
        models: all distinct models of the workload, after all graph passes of the compiler.
        workload: queries with their precisions, accuracy targets and images.
        settings: precision of queries that name none, and how to calibrate.
        step: called with the name of each finished stage and a line of text on what it did.

    Returns:
        The calibration that was applied; None if no query asks for lower precision.

    Raises:
        DataError: a query has no images to calibrate on and to measure accuracy on.
        CompileError: a graph from an ONNX file has operators older than version 13 that cannot be converted to it.
        CalibrationError: frames do not fit a model; or the given calibration was made for other models, or does not
            keep the accuracy targets of the workload.
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
    """Return a calibration: value ranges measured on frames, and the layers that must stay float32.

    If an earlier compilation searched with the same input, its calibration is returned without a new search.
    """
    measured = measure_models(weights, workload, wanted, settings, step)
    contested = weights.contested(measured.records)
    earlier = settings.reusable
    if earlier is not None and is_unchanged(earlier, measured.records, measured.refused, measured.floors, contested):
        return earlier
    return hold_floors(weights, measured, settings.method, step)
