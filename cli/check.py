"""Command ``gemel check``: check a bundle's files, and compare it with its source models and with a baseline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from ..console import check_writable, missing_extra, open_console, write_json
from ..errors import InputError
from .check_parts import (
    CheckReport,
    check_accuracy,
    check_baseline,
    check_files,
    check_outputs,
    check_sharing,
    save_baseline,
)
from .options import BundleArg, DebugOpt, JsonOpt

if TYPE_CHECKING:
    from ..workload import Workload

__all__ = ["check_command"]


def check_command(
    bundle: BundleArg,
    against: Annotated[
        Path | None,
        typer.Option(
            help="Also compare outputs and answers with the models of this workload, on frames of the feeds.",
            metavar="WORKLOAD.YAML",
        ),
    ] = None,
    rtol: Annotated[
        float, typer.Option(help="Difference allowed per output, relative to the output's largest value.", min=0)
    ] = 1e-3,
    atol: Annotated[float, typer.Option(help="Absolute difference per output that is always allowed.", min=0)] = 1e-5,
    accuracy: Annotated[
        bool,
        typer.Option(
            "--accuracy",
            help="Also compare the accuracy of every query, on images that no merge has chosen by.",
        ),
    ] = False,
    baseline: Annotated[
        Path | None,
        typer.Option(help="Also fail if the bundle or its engines are worse than this file says.", metavar="FILE"),
    ] = None,
    write_baseline: Annotated[
        Path | None,
        typer.Option(help="Write programs, sizes and sharing to this file, for --baseline.", metavar="FILE"),
    ] = None,
    latency: Annotated[
        bool,
        typer.Option("--latency", help="Include run times in the baseline, relative to plain sessions on this CPU."),
    ] = False,
    json_file: JsonOpt = None,
    debug: DebugOpt = False,
) -> None:
    """Check the hash of every file of a bundle and of its device caches, and with --against every output and answer.

    [dim]gemel check bundle/ --against merged/workload.yaml --accuracy[/dim]

    [dim]gemel check bundle/ --baseline baseline.json[/dim]
    """
    from ..bundles.reader import open_bundle
    from ..check.regression.baseline import read_baseline

    _check_flags(against, accuracy, baseline, write_baseline, latency)
    check_writable(json_file)
    check_writable(write_baseline)
    before = None if baseline is None else read_baseline(baseline)
    if latency and before is not None and not before.latency:
        raise InputError(f"--latency: {baseline} has no latencies; write it again with --latency")
    console = open_console()
    opened = open_bundle(bundle)
    report: CheckReport = {"models": {}}
    check_files(console, opened, report)
    failed = check_sharing(console, opened, report)
    if against is not None:
        workload = _load(against)
        failed += check_outputs(console, opened, workload, rtol, atol, report)
        if accuracy:
            failed += check_accuracy(console, opened, workload, report)
    if before is not None:
        failed += check_baseline(console, opened, before, latency, report)
    write_json(json_file, report)
    if failed:
        console.print(f"[red]failed:[/] {escape(', '.join(failed))}", soft_wrap=True)
        raise typer.Exit(1)
    if write_baseline is not None:
        save_baseline(console, opened, write_baseline, latency)
    console.print(f"Next: gemel bench {bundle}")


def _check_flags(
    against: Path | None, accuracy: bool, baseline: Path | None, write_baseline: Path | None, latency: bool
) -> None:
    """Refuse flags of ``gemel check`` that need another flag or exclude each other.

    Raises:
        InputError: such a flag was given; the message names it.
    """
    if baseline is not None and write_baseline is not None:
        raise InputError("--write-baseline: cannot be given with --baseline, which reads an earlier file")
    if latency and baseline is None and write_baseline is None:
        raise InputError("--latency: --baseline FILE or --write-baseline FILE is needed with it")
    if accuracy and against is None:
        raise InputError("--accuracy: --against WORKLOAD.YAML is needed with it: models and images to compare with")


def _load(path: Path) -> Workload:
    try:
        from ..workload import load_workload
    except ModuleNotFoundError as error:
        raise missing_extra(error, "gemel check --against", "compiler") from error
    return load_workload(path)
