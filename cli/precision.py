"""Conversion of models to int8 or fp16 for ``gemel-compile --precision``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from ..bundles.manifest import Precision
from ..bundles.merge_report import MERGE_REPORT, read_report
from ..console import missing_extra
from ..errors import CalibrationError, InputError
from ..workload.document.schema import Workload
from ..workload.models.identity import models_of

if TYPE_CHECKING:
    from ..calib.convert import PrecisionReport
    from ..compiler.compile import CompileProgress
    from ..compiler.lowering.lower import Lowered

__all__ = ["PrecisionConverter"]


class PrecisionConverter:
    """Callback of :func:`gemel.compiler.compile.compile_workload` that converts models to lower precision.

    Args:
        workload: workload that is compiled.
        output: folder of the bundle; an earlier bundle in this folder may have a calibration.
        precision: precision of queries that name none.
        method: method that chooses int8 ranges.
        calibration: file with an earlier calibration of the same models, to use instead of frames.

    Attributes:
        report: result of the conversion; None before the conversion, and if no query asks for lower precision.

    Raises:
        InputError: the precision or the method does not exist, or a calibration is given but all queries are float32.
        CalibrationError: the given file is not a calibration.
    """

    def __init__(
        self, workload: Workload, output: Path, precision: str, method: str, calibration: Path | None = None
    ) -> None:
        self.report: PrecisionReport | None = None
        if precision not in get_args(Precision):
            raise InputError(f"--precision: {precision!r} is not allowed: {', '.join(get_args(Precision))} are")
        self._wanted = precision != "fp32" or any(query.precision not in (None, "fp32") for query in workload.queries)
        if not self._wanted:
            if calibration is not None:
                raise InputError("--calibration: no query asks for int8 or fp16: give --precision int8 with it")
            return
        try:
            if calibration is None:
                # Judging accuracy needs this package, but imports it only after much work. So it is looked for here.
                import torchmetrics  # noqa: F401

            from ..calib.ranges import METHODS
            from ..calib.record import CALIBRATION, read_calibration
            from ..calib.request import PrecisionSettings
        except ModuleNotFoundError as error:
            raise missing_extra(error, "--precision", "merge") from error
        if method not in METHODS:
            raise InputError(f"--ranges: {method!r} is not allowed: {', '.join(METHODS)} are")
        found = None
        # An earlier bundle's calibration only saves time: compiling goes on without one that cannot be read.
        with suppress(CalibrationError) if calibration is None else nullcontext():
            found = read_calibration(calibration or output / CALIBRATION)
        merge = workload.root / MERGE_REPORT
        self._workload = workload
        self._settings = PrecisionSettings(
            precision=cast(Precision, precision),
            method=method,
            earlier=found if calibration is None else None,
            given=found if calibration is not None else None,
            merged={name: each.relative for name, each in read_report(merge).queries.items()} if merge.exists() else {},
        )

    def __call__(self, models: Sequence[Lowered], step: CompileProgress) -> Mapping[str, bytes]:
        """Convert compiled models to lower precision in place, and return the calibration as a file for the bundle."""
        if not self._wanted:
            return {}
        from ..calib.convert import convert_precision
        from ..calib.record import CALIBRATION

        self.report = convert_precision(models, self._workload, self._settings, step)
        return {} if self.report is None else {CALIBRATION: self.report.calibration.model_dump_json(indent=1).encode()}

    def table(self) -> Table | None:
        """Return a table of accuracy, size and run time of all converted queries, in float32 and as compiled.

        None if all models are float32.
        """
        if self.report is None:
            return None
        table = Table(title="precision: float32, then as compiled", title_justify="left", box=SIMPLE)
        for column in ("query", "precision"):
            table.add_column(column)
        for column in ("accuracy", "at least", "images", "model, MB", "run on this CPU, ms"):
            table.add_column(column, justify="right")
        model_of = models_of(self._workload)
        for name, query in self.report.calibration.queries.items():
            table.add_row(
                escape(name),
                query.precision,
                f"{query.fp32:.2%}  {query.accuracy:.2%}",
                f"{query.floor:.2%}",
                str(query.images) if query.labelled else f"{query.images}, agreement",
                f"{query.fp32_bytes / 1e6:.2f}  {query.bytes / 1e6:.2f}",
                "  ".join(f"{each:.2f}" for each in self.report.times.get(model_of[name], ())),
            )
        return table
