"""``gemel compile``, which is ``gemel-compile``."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import Annotated

import typer

from ..console import missing_extra, open_console, print_stage, progress_bar
from .options import DebugOpt, WorkloadArg

__all__ = ["compile_"]


def compile_(
    workload: WorkloadArg,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the bundle to write.", metavar="BUNDLE")],
    backend: Annotated[
        str | None, typer.Option(help="Also prepare the bundle for this backend on this device.", metavar="NAME")
    ] = None,
    debug: DebugOpt = False,
) -> None:
    """Compile a workload into a bundle: every model as ONNX, every distinct weight once.

    [dim]gemel-compile examples/street/workload.yaml -o bundle/[/dim]
    """
    from ..runtime.backends import check_backend

    if backend is not None:
        check_backend(backend)
    try:
        from ..compiler import compile_workload
        from ..workload import load
        from ..workload.models import models_of
    except ModuleNotFoundError as error:
        raise missing_extra(error, "gemel-compile", "compiler") from error
    from ..runtime.backends import open_backend
    from ..runtime.bundle import open_bundle
    from ..runtime.inspect import describe

    console, began = open_console(), perf_counter()
    loaded = load(workload)
    with progress_bar(console, len(set(models_of(loaded).values()))) as bar:
        task = bar.task_ids[0]

        def step(name: str, what: str) -> None:
            print_stage(bar.console, name, what, began=began)
            bar.advance(task, 1 if name == "export" else 0)

        report = compile_workload(loaded, output, step)
    bundle = open_bundle(report.path)
    if backend is not None:
        with open_backend(bundle, backend):
            print_stage(console, "device", f"{backend}: programs and weights baked", began=began)
    sizes = describe(bundle)["bytes"]
    print_stage(
        console,
        "weights",
        f"{sizes['queries'] / 1e6:.1f} MB as one session a query, {sizes['unique'] / 1e6:.1f} MB in the bundle",
    )
    console.print(f"Next: gemel-run {output}")
