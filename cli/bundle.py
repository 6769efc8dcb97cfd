"""The commands that look at a bundle: ``gemel inspect``, ``gemel check`` and ``gemel bench``."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from ..console import check_writable, missing_extra, open_console, print_stage, progress_bar, write_json
from ..errors import InputError
from .options import BundleArg, DebugOpt, JsonOpt

if TYPE_CHECKING:
    from ..merging.verify import Judged
    from ..runtime.bundle import Bundle
    from ..workload import Workload

__all__ = ["bench", "check", "inspect"]


def inspect(bundle: BundleArg, json_file: JsonOpt = None, debug: DebugOpt = False) -> None:
    """What is in a bundle, and what is shared.

    [dim]gemel inspect bundle/ --json bundle.json[/dim]
    """
    from ..runtime.bundle import open_bundle
    from ..runtime.inspect import describe, tables

    opened = open_bundle(bundle)
    console = open_console()
    for table in tables(opened):
        console.print(table)
    write_json(json_file, describe(opened))
    console.print(f"Next: gemel check {bundle}")


def check(
    bundle: BundleArg,
    against: Annotated[
        Path | None,
        typer.Option(help="Also compare outputs with the models of this workload.", metavar="WORKLOAD.YAML"),
    ] = None,
    rtol: Annotated[float, typer.Option(help="Difference allowed, relative to the largest output.", min=0)] = 1e-3,
    atol: Annotated[float, typer.Option(help="Difference allowed beside that.", min=0)] = 1e-5,
    accuracy: Annotated[
        bool,
        typer.Option("--accuracy", help="Also compare the accuracy of every query, on the images it is judged by."),
    ] = False,
    json_file: JsonOpt = None,
    debug: DebugOpt = False,
) -> None:
    """Check a bundle: every file's hash, also of what was baked for this device, and with --against every output.

    [dim]gemel check bundle/ --against merged/workload.yaml --accuracy[/dim]
    """
    from ..runtime.bake import verify_cache
    from ..runtime.bundle import open_bundle, verify

    if accuracy and against is None:
        raise InputError("--accuracy: the models and images to compare with are missing: --against WORKLOAD.YAML")
    check_writable(json_file)
    console = open_console()
    opened = open_bundle(bundle)
    passed = list(verify(opened))
    print_stage(console, "files", f"{len(passed)} files as the manifest says")
    caches = verify_cache(opened)
    for folder in caches:
        print_stage(console, "device", f"{folder} as it was baked")
    report: dict[str, Any] = {"files": len(passed), "device": [str(folder) for folder in caches], "models": {}}
    failed: list[str] = []
    if against is not None:
        try:
            from ..compiler.check import compare
            from ..workload import load
        except ModuleNotFoundError as error:
            raise missing_extra(error, "gemel check --against", "compiler") from error
        workload = load(against)
        for result in compare(opened, workload, rtol=rtol, atol=atol):
            what = f"{result.model}: relative difference {result.relative:.1e}"
            print_stage(console, "outputs", what, passed=result.passed)
            report["models"][result.model] = {"relative": result.relative, "passed": result.passed}
            failed += [] if result.passed else [result.model]
        if accuracy:
            report["accuracy"] = _accuracies(console, opened, workload)
            failed += [f"accuracy of {name}" for name, found in report["accuracy"].items() if found["passed"] is False]
    write_json(json_file, report)
    if failed:
        console.print(f"[red]failed:[/] {', '.join(failed)}")
        raise typer.Exit(1)
    console.print(f"Next: gemel bench {bundle}")


def _accuracies(console: Console, bundle: Bundle, workload: Workload) -> dict[str, dict[str, Any]]:
    """Print the accuracy of every query, one a line, and return the same for JSON."""
    report: dict[str, dict[str, Any]] = {}
    try:
        from ..merging.verify import NotJudged, verify_accuracy

        with progress_bar(console, len(bundle.manifest.queries)) as bar:
            for found in verify_accuracy(bundle, workload):
                if isinstance(found, NotJudged):
                    report[found.query] = {"passed": None, "reason": found.reason}
                    print_stage(bar.console, "accuracy", f"{found.query}: not judged: {found.reason}")
                else:
                    report[found.query] = {**asdict(found), "passed": found.passed}
                    print_stage(bar.console, "accuracy", f"{found.query}: {_in_words(found)}", passed=found.passed)
                bar.advance(bar.task_ids[0])
    except ModuleNotFoundError as error:
        raise missing_extra(error, "gemel check --accuracy", "merge") from error
    return report


def _in_words(found: Judged) -> str:
    if not found.labelled:
        itself = f", which does with itself by {found.source:.2%}"
        return f"agrees with the source by {found.bundle:.2%}{itself} ({found.images} images)"
    merged = "" if found.reached is None else f", merge.json {found.reached:.2%}"
    return f"{found.bundle:.2%}, source {found.source:.2%}{merged} ({found.images} images)"


def bench(
    bundle: BundleArg,
    against: Annotated[
        Path | None,
        typer.Option(help="Compare with these models as PyTorch exports them; left out, with the bundle's ONNX files."),
    ] = None,
    rounds: Annotated[int, typer.Option(help="Runs of each model and side, in turn.", min=3)] = 30,
    json_file: JsonOpt = None,
    debug: DebugOpt = False,
) -> None:
    """Swap-in, latency and memory beside plain ONNX Runtime sessions of the same models, in one run.

    [dim]gemel bench bundle/ --json bench.json[/dim]
    """
    from ..runtime.bench import measure, table
    from ..runtime.bundle import open_bundle

    check_writable(json_file)
    console = open_console()
    opened = open_bundle(bundle)
    with tempfile.TemporaryDirectory(prefix="gemel-bench-") as folder:
        plain: dict[str, Path] | None = None
        if against is not None:
            try:
                from ..compiler.plain import export_plain
                from ..workload import load
            except ModuleNotFoundError as error:
                raise missing_extra(error, "gemel bench --against", "compiler") from error
            plain = export_plain(load(against), Path(folder))
        figures = measure(opened, rounds=rounds, plain=plain, say=lambda text: console.print(escape(text)))
    console.print(table(figures))
    write_json(json_file, figures)
    console.print(f"Next: gemel-run {bundle} --memory min")
