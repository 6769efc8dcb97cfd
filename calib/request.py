"""Precision that a workload asks for each model, and accuracy that each query must keep: pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..bundles.manifest import Precision
from ..workload.document.schema import Query, Workload
from ..workload.models.factory import models_of
from .ranges import Method
from .record import Calibration

__all__ = ["PrecisionSettings", "accuracy_floor", "precisions_of"]

_LEAST_PART = 0.99
"""Part of its float32 accuracy that a query keeps even if its target allows less."""
_LEAST_REACHED = 0.01
"""Relative accuracy that a merged query is taken to have reached at least, so that nothing is divided by 0."""


@dataclass(frozen=True)
class PrecisionSettings:
    """Settings of :func:`gemel.calib.convert.convert_precision`."""

    precision: Precision = "fp32"
    """Precision of queries that name none."""
    method: Method = "percentile"
    """Method that chooses int8 ranges; see :func:`gemel.calib.ranges.peaks_of`."""
    earlier: Calibration | None = None
    """Calibration of an earlier compilation; ranges and layers are reused where models and frames are the same."""
    given: Calibration | None = None
    """Calibration to use without frames to calibrate on or to judge by; None to calibrate on frames."""
    merged: Mapping[str, float] = field(default_factory=dict)
    """Merged query -> its accuracy relative to the original model's."""

    @property
    def reusable(self) -> Calibration | None:
        """The earlier calibration, if its ranges were chosen by the same method."""
        return self.earlier if self.earlier is not None and self.earlier.method == self.method else None


def precisions_of(workload: Workload, default: Precision) -> dict[str, Precision]:
    """Return the precision of each model: the highest that one of its queries asks for.

    Args:
        workload: queries and their models.
        default: precision of queries that name none.
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

    A target is relative to the original model. Accuracy that merging has already given up counts against the target, so
    the floor is the target divided by what the merged model reached, and at least 99 % of the float32 accuracy.

    Args:
        query: a query and its accuracy target.
        fp32: accuracy of the query's model in float32, as it is compiled.
        merged: merged query -> its accuracy relative to the original model's.
    """
    reached = max(merged.get(query.name, 1.0), _LEAST_REACHED)
    return fp32 * max(_LEAST_PART, min(1.0, query.target / reached))
