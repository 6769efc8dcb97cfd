"""Command ``gemel compile``, which is also ``gemel-compile``: compile a workload into a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from ..console import missing_extra, open_console, print_stage, progress_bar
from ..errors import InputError
from .options import DebugOpt, VersionOpt, WorkloadArg

if TYPE_CHECKING:
    from ..bundles.reader import Bundle
    from ..runtime.engines.library import Library

__all__ = ["compile_command"]


def compile_command(
    workload: WorkloadArg,
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            help="Folder of the bundle; an older bundle is replaced.",
            metavar="BUNDLE",
        ),
    ],
    backend: Annotated[
        str | None, typer.Option(help="Also make the device cache of this backend on this device.", metavar="NAME")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            help="Build engines for cards with these compute capabilities, such as sm86,sm89; needs no such card.",
            metavar="SM,SM",
        ),
    ] = None,
    precision: Annotated[
        str, typer.Option(help="Precision of queries that name none: fp32, fp16 or int8.", metavar="NAME")
    ] = "fp32",
    ranges: Annotated[
        str, typer.Option(help="Method that chooses int8 ranges: percentile, min-max or entropy.", metavar="METHOD")
    ] = "percentile",
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="Take int8 ranges and float32 layers from this calibration.json of the same models; needs no frames.",
            metavar="FILE",
        ),
    ] = None,
    originals: Annotated[
        Path | None,
        typer.Option(
            help="Bundle of the models as they were before the merge, or their workload.yaml, for gemel revert.",
            metavar="BUNDLE|WORKLOAD.YAML",
        ),
    ] = None,
    originals_at: Annotated[
        str | None,
        typer.Option(
            help="With --originals, leave them out of the bundle: boxes fetch them from here when a query is reverted.",
            metavar="URL|DIR",
        ),
    ] = None,
    version: VersionOpt = False,
    debug: DebugOpt = False,
) -> None:
    """Compile a workload into a bundle: every model as ONNX, every distinct weight once.

    [dim]gemel-compile examples/street/workload.yaml -o bundle/[/dim]

    [dim]gemel-compile workload.yaml -o bundle/ --precision int8[/dim]

    [dim]gemel-compile workload.yaml -o bundle/ --backend tensorrt-rtx --target sm86,sm89[/dim]

    [dim]gemel-compile merged/workload.yaml -o bundle/ --originals workload.yaml[/dim]
    """
    from ..runtime.backends import check_backend

    library, targets = None, [each.strip().lower() for each in (target or "").split(",")]
    if target is not None:
        library = _library(backend)
        library.check_targets(targets)
    elif backend is not None:
        check_backend(backend)
    try:
        from ..compiler import compile_workload
        from ..workload import load_workload
        from ..workload.models.identity import models_of
    except ModuleNotFoundError as error:
        raise missing_extra(error, "gemel-compile", "compiler") from error
    from ..bundles.reader import open_bundle
    from ..check.contents.inspect import sizes
    from ..runtime.backends import open_backend
    from .compile_originals import check_originals, describe_originals, finish_with
    from .compile_parts import describe_inputs, note_labels, note_variables, warn_of_feeds, warn_of_memory
    from .precision import PrecisionConverter

    check_originals(originals, originals_at, workload)
    console, began = open_console(), perf_counter()
    loaded = load_workload(workload)
    for line in warn_of_feeds(loaded):
        print_stage(console, "feed", line)
    converter = PrecisionConverter(loaded, output, precision, ranges, calibration)
    with progress_bar(console, len(set(models_of(loaded).values()))) as bar:
        task = bar.task_ids[0]

        def step(name: str, what: str) -> None:
            print_stage(bar.console, name, what, began=began)
            bar.advance(task, 1 if name == "export" else 0)

        with finish_with(originals, originals_at, output, step, precision, ranges) as finish:
            report = compile_workload(loaded, output, step, converter, finish)
    bundle = open_bundle(report.path)
    for line in describe_inputs(bundle):
        print_stage(console, "input", line)
    if (note := note_labels(bundle)) is not None:
        print_stage(console, "labels", note)
    if (note := note_variables(bundle)) is not None:
        print_stage(console, "variables", note)
    if library is not None:
        print_stage(console, "engines", _build(console, bundle, library, targets), began=began)
    elif backend is not None:
        with open_backend(bundle, backend):
            print_stage(console, "device", f"{backend}: programs and weights baked", began=began)
    if (table := converter.table()) is not None:
        console.print(table)
    held = sizes(bundle)
    print_stage(
        console,
        "weights",
        f"{held['queries'] / 1e6:.1f} MB as one session per query, {held['unique'] / 1e6:.1f} MB in the bundle",
    )
    for line in describe_originals(bundle):
        print_stage(console, "originals", line)
    if (warning := warn_of_memory(bundle)) is not None:
        print_stage(console, "memory", warning)
    console.print(f"Next: gemel-run {output}")


def _library(backend: str | None) -> Library:
    """Return the library (TensorRT or TensorRT for RTX) that builds the engines of a backend.

    Raises:
        InputError: the backend runs without engines.
    """
    from ..runtime.engines.library import LIBRARIES, find_library

    if backend not in LIBRARIES:
        raise InputError("--target is for engines of devices that are not here: give --backend tensorrt-rtx with it")
    return find_library(backend)


def _build(console: Console, bundle: Bundle, library: Library, targets: Sequence[str]) -> str:
    """Build a bundle's TensorRT engines for the given compute capabilities, and return a line about the result."""
    from ..runtime.engines.store import build_engines

    with progress_bar(console, len(bundle.manifest.programs)) as bar:
        (task,) = bar.task_ids
        built = build_engines(
            bundle,
            library,
            targets,
            lambda model, number, count: bar.update(
                task, description=escape(f"engine of {model}"), completed=number - 1
            ),
        )
    inputs = sum(engine.inputs for engine in built.engines.values())
    return (
        f"{built.title}: {len(built.engines)} programs with {inputs} weights as inputs,"
        f" {built.bytes / 1e6:.1f} MB in {built.folder}"
    )
