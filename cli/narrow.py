"""What ``gemel-compile --precision`` does beside compiling."""

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
from ..workload.models.factory import models_of

if TYPE_CHECKING:
    from ..calib.narrow import Narrowed
    from ..compiler.compile import CompileProgress
    from ..compiler.lowering.lower import Lowered

__all__ = ["Narrower"]


class Narrower:
    """Makes models narrower between the compiler's passes and its writer; ``found`` says what came of it.

    Args:
        workload: what is compiled.
        output: where a bundle with an earlier calibration may lie.
        precision: of queries that do not say it themselves.
        method: by which ranges are found.
        calibration: a file to take them from instead.

    Raises:
        InputError: a precision or a method that does not exist; a calibration that nothing asks for.
        CalibrationError: a file that is none.
    """

    def __init__(
        self, workload: Workload, output: Path, precision: str, method: str, calibration: Path | None = None
    ) -> None:
        self.found: Narrowed | None = None
        if precision not in get_args(Precision):
            raise InputError(f"--precision: {precision!r} is not allowed: {', '.join(get_args(Precision))} are")
        self._wanted = precision != "fp32" or any(query.precision not in (None, "fp32") for query in workload.queries)
        if not self._wanted:
            if calibration is not None:
                raise InputError("--calibration: nothing is to be narrower: give --precision int8 with it")
            return
        try:
            if calibration is None:
                # What models are judged by. It is imported by need, which is too late to say that it is missing.
                import torchmetrics  # noqa: F401

            from ..calib.narrow import PrecisionSettings
            from ..calib.ranges import METHODS
            from ..calib.record import CALIBRATION, read_calibration
        except ModuleNotFoundError as error:
            raise missing_extra(error, "--precision", "merge") from error
        if method not in METHODS:
            raise InputError(f"--ranges: {method!r} is not allowed: {', '.join(METHODS)} are")
        known = None
        # What a bundle that is replaced says is a help, and no more.
        with suppress(CalibrationError) if calibration is None else nullcontext():
            known = read_calibration(calibration or output / CALIBRATION)
        merge = workload.root / MERGE_REPORT
        self._workload = workload
        self._settings = PrecisionSettings(
            precision=cast(Precision, precision),
            method=method,
            known=known,
            blind=calibration is not None,
            merged={name: each.relative for name, each in read_report(merge).queries.items()} if merge.exists() else {},
        )

    def __call__(self, models: Sequence[Lowered], step: CompileProgress) -> Mapping[str, bytes]:
        if not self._wanted:
            return {}
        from ..calib.narrow import narrow
        from ..calib.record import CALIBRATION

        self.found = narrow(models, self._workload, self._settings, step)
        return {} if self.found is None else {CALIBRATION: self.found.record.model_dump_json(indent=1).encode()}

    def table(self) -> Table | None:
        """Each query beside its float32 self; None where all are float32."""
        if self.found is None:
            return None
        table = Table(title="precision: float32, then as compiled", title_justify="left", box=SIMPLE)
        for column in ("query", "precision"):
            table.add_column(column)
        for column in ("accuracy", "at least", "images", "model, MB", "run on this CPU, ms"):
            table.add_column(column, justify="right")
        model_of = models_of(self._workload)
        for name, query in self.found.record.queries.items():
            table.add_row(
                escape(name),
                query.precision,
                f"{query.fp32:.2%}  {query.accuracy:.2%}",
                f"{query.floor:.2%}",
                str(query.images) if query.labelled else f"{query.images}, agreement",
                f"{query.fp32_bytes / 1e6:.2f}  {query.bytes / 1e6:.2f}",
                "  ".join(f"{each:.2f}" for each in self.found.times.get(model_of[name], ())),
            )
        return table
