"""Convert a workload's models to lower precision as the compiler does it, and keep all that came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
from precision_cases import lower_once, passed, shapes

from gemel.calib.convert import convert_precision
from gemel.calib.record import Calibration
from gemel.calib.request import PrecisionSettings
from gemel.compiler.lowering.lower import Lowered
from gemel.compiler.writing.sharing import kernels, prove
from gemel.workload import load_workload
from gemel.workload.models.identity import models_of

__all__ = ["INT8", "SHARED", "Conversion", "convert", "proto"]

INT8 = PrecisionSettings("int8", "min-max")
SHARED = ("stem.weight", "pointwise.weight", "head.weight")
"""Kernels that both models of :func:`precision_cases.write_pair` hold and that the compiler keeps shared."""


@dataclass(frozen=True)
class Conversion:
    """Models before and after conversion, and what the conversion reported."""

    found: Calibration | None
    """The calibration; None if no query asks for lower precision."""
    times: Mapping[str, tuple[float, float]]
    """INT8 model -> milliseconds of a run in float32 and in int8."""
    models: dict[str, Lowered]
    """The converted models."""
    before: dict[str, ir.Model]
    """Model -> its float32 graph."""
    told: list[str]
    """Progress lines: stage and what it did."""

    def graph(self, model: str) -> ir.Model:
        """Return the converted graph of a model."""
        return self.models[model].stages["main"]

    def types(self, model: str) -> dict[str, str]:
        """Return weight -> dtype in the converted graph of a model."""
        return {name: kind for name, (kind, _) in shapes(self.graph(model)).items() if name.endswith("weight")}

    @property
    def record(self) -> Calibration:
        """The calibration, which must be there."""
        assert self.found is not None
        return self.found


def convert(path: Path, settings: PrecisionSettings = INT8) -> Conversion:
    """Lower the models of a workload, convert them, and prove that they share what they shared before."""
    workload = load_workload(path)
    used = dict.fromkeys(models_of(workload).values())
    lowered = [lower_once(each, workload.root) for each in workload.queries if each.name in used]
    start = kernels(lowered)
    models = passed(lowered)
    before = {model.name: model.stages["main"].clone() for model in models}
    told: list[str] = []
    report = convert_precision(models, workload, settings, lambda name, what: told.append(f"{name} {what}"))
    prove(models, start, {tensor for tensor, uses in start.items() if uses[0][2] == "depthwise.weight"})
    return Conversion(
        report.calibration if report else None,
        report.times if report else {},
        {model.name: model for model in models},
        before,
        told,
    )


def proto(graph: ir.Model) -> bytes:
    """Return a graph in its serialised form."""
    data: bytes = ir.to_proto(graph).SerializeToString(deterministic=True)
    return data
