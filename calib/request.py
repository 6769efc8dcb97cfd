"""Pure functions that find the precision of each model of a workload, and the accuracy that each query must keep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..bundles.manifest import Precision
from ..workload.document.schema import Query, Workload
from ..workload.models.identity import models_of
from .ranges import Method
from .record import Calibration

__all__ = ["PrecisionSettings", "accuracy_floor", "precisions_of"]

_LEAST_PART = 0.99
"""Minimum fraction of its float32 accuracy that a query must keep in lower precision, even if its target allows
less."""
_LEAST_REACHED = 0.01
"""Minimum assumed for a merged query's accuracy, as a fraction of the original model's, to avoid a division by 0."""


@dataclass(frozen=True)
class PrecisionSettings:
    """Settings for converting models to lower precision with :func:`gemel.calib.convert.convert_precision`."""

    precision: Precision = "fp32"
    """Precision of the queries of a workload that name no precision."""
    method: Method = "percentile"
    """Method that chooses the value ranges of int8 models; see :func:`gemel.calib.ranges.peaks_of`."""
    earlier: Calibration | None = None
    """Calibration of an earlier compilation, reused for models and frames that have not changed since; None if none."""
    given: Calibration | None = None
    """Calibration to use as it is, without reading any frames; None to calibrate on frames."""
    merged: Mapping[str, float] = field(default_factory=dict)
    """Name of each merged query -> its accuracy divided by the accuracy of the original model."""

    @property
    def reusable(self) -> Calibration | None:
        """Calibration of an earlier compilation, if its value ranges were chosen by the method that is set now;
        otherwise None."""
        return self.earlier if self.earlier is not None and self.earlier.method == self.method else None


def precisions_of(workload: Workload, default: Precision) -> dict[str, Precision]:
    """Return model -> precision: the highest precision that one of the model's queries asks for.

    Args:
        workload: queries and their models.
        default: precision of queries that name no precision.
    """
    order: tuple[Precision, ...] = ("int8", "fp16", "fp32")
    found: dict[str, Precision] = {}
    model_of = models_of(workload)
    for query in workload.queries:
        name, wanted = model_of[query.name], query.precision or default
        found[name] = max(found.get(name, wanted), wanted, key=order.index)
    return found


def accuracy_floor(query: Query, fp32: float, merged: Mapping[str, float]) -> float:
    """Return the accuracy that a query must keep in lower precision.

    A query's target is relative to the accuracy of the original model, and merging may already have lost accuracy.
    The result is therefore ``fp32`` times the target divided by the relative accuracy that merging reached. The result
    is at least 99 % of ``fp32``, and at most ``fp32``.

    Args:
        query: a query and its accuracy target.
        fp32: accuracy of the query's compiled model in float32, after any merge.
        merged: name of each merged query -> its accuracy divided by the accuracy of the original model.
    """
    reached = max(merged.get(query.name, 1.0), _LEAST_REACHED)
    return fp32 * max(_LEAST_PART, min(1.0, query.target / reached))
