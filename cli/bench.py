"""Command ``gemel bench``: measure a bundle against plain ONNX Runtime sessions of the same models."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from ..console import check_writable, missing_extra, open_console, write_json
from .options import BundleArg, DebugOpt, JsonOpt

__all__ = ["bench_command"]


def bench_command(
    bundle: BundleArg,
    against: Annotated[
        Path | None,
        typer.Option(
            help="Compare with the models of this workload as PyTorch exports them. Default: the bundle's ONNX files.",
            metavar="WORKLOAD.YAML",
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(help="Runs of each model in the bundle and in a plain session.", min=3)] = 30,
    json_file: JsonOpt = None,
    debug: DebugOpt = False,
) -> None:
    """Measure swap-in, latency and memory of a bundle, and of plain ONNX Runtime sessions of the same models.

    [dim]gemel bench bundle/ --json bench.json[/dim]
    """
    from ..bundles.reader import open_bundle
    from ..check.bench.bench import measure_bundle, table

    check_writable(json_file)
    console = open_console()
    opened = open_bundle(bundle)
    with tempfile.TemporaryDirectory(prefix="gemel-bench-") as folder:
        plain: dict[str, Path] | None = None
        if against is not None:
            try:
                from ..check.source.plain_export import export_plain
                from ..workload import load_workload
            except ModuleNotFoundError as error:
                raise missing_extra(error, "gemel bench --against", "compiler") from error
            plain = export_plain(load_workload(against), Path(folder))
        figures = measure_bundle(opened, rounds=rounds, plain=plain, say=lambda text: console.print(escape(text)))
    console.print(table(figures))
    write_json(json_file, figures)
    console.print(f"Next: gemel-run {bundle} --memory min")
