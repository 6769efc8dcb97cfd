"""The commands: ``gemel``, and ``gemel-compile`` and ``gemel-run`` as short names for two of its own.

Each command imports what it needs when it runs, so that ``gemel-run`` works where only the light runtime is installed.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import typer
from rich.markup import escape

from .console import Stop, check_writable, missing_extra, open_console, pair, print_error, progress_bar, write_json
from .errors import GemelError, InputError

__all__ = ["app", "compile_main", "main", "run_main"]

_OPTIONS: dict[str, Any] = {
    "pretty_exceptions_enable": False,
    "add_completion": False,
    "rich_markup_mode": "rich",
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
app = typer.Typer(
    name="gemel",
    help="Many vision models in the memory of a few: merge, compile, run.",
    no_args_is_help=True,
    **_OPTIONS,
)

BundleArg = Annotated[Path, typer.Argument(help="Folder that gemel-compile wrote.", metavar="BUNDLE")]
WorkloadArg = Annotated[Path, typer.Argument(help="The workload file.", metavar="WORKLOAD.YAML")]
JsonOpt = Annotated[Path | None, typer.Option("--json", help="Write it as JSON to this file.", metavar="FILE")]
ThreadsOpt = Annotated[
    int | None, typer.Option(help="Threads of a run; left out, one less than the cores.", min=1, metavar="N")
]
DebugOpt = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


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
    from .runtime.backends import check_backend

    if backend is not None:
        check_backend(backend)
    try:
        from .compiler import compile_workload
        from .workload import load
        from .workload.models import models_of
    except ModuleNotFoundError as error:
        raise missing_extra(error, "gemel-compile", "compiler") from error
    from .runtime.backends import open_backend
    from .runtime.bundle import open_bundle
    from .runtime.inspect import describe

    console, began = open_console(), perf_counter()
    loaded = load(workload)
    with progress_bar(console, len(set(models_of(loaded).values()))) as bar:
        task = bar.task_ids[0]

        def step(name: str, what: str) -> None:
            bar.console.print(f"[bold]{name:>8}[/]  {perf_counter() - began:5.1f} s  {escape(what)}")
            bar.advance(task, 1 if name == "export" else 0)

        report = compile_workload(loaded, output, step)
    bundle = open_bundle(report.path)
    if backend is not None:
        with open_backend(bundle, backend):
            took = perf_counter() - began
            console.print(f"[bold]{'device':>8}[/]  {took:5.1f} s  {backend}: programs and weights baked")
    sizes = describe(bundle)["bytes"]
    console.print(
        f"[bold]{'weights':>8}[/]  {sizes['queries'] / 1e6:.1f} MB as one session a query,"
        f" {sizes['unique'] / 1e6:.1f} MB in the bundle"
    )
    console.print(f"Next: gemel-run {output}")


def run(
    bundle: BundleArg,
    memory: Annotated[
        str | None, typer.Option(help="Budget for weights: 64MiB, 50%, min or all.", metavar="SIZE")
    ] = None,
    backend: Annotated[str | None, typer.Option(help="Left out, the workload's.", metavar="NAME")] = None,
    frames: Annotated[int | None, typer.Option(help="Stop after so many frames of each feed.", min=1)] = None,
    duration: Annotated[float | None, typer.Option(help="Stop after so many seconds.", min=0.001)] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Every query sees every frame, as fast as models go.")
    ] = False,
    feed: Annotated[
        list[str] | None, typer.Option(help="Read a feed from elsewhere: NAME=SOURCE.", metavar="NAME=SOURCE")
    ] = None,
    results: Annotated[Path | None, typer.Option(help="Write results.jsonl here.", metavar="FILE")] = None,
    summary: Annotated[Path | None, typer.Option("--json", help="Write summary.json here.", metavar="FILE")] = None,
    video: Annotated[Path | None, typer.Option(help="Write an annotated video a feed.", metavar="DIR")] = None,
    threads: ThreadsOpt = None,
    debug: DebugOpt = False,
) -> None:
    """Run every query of a bundle on its feed, until the feeds end or Ctrl-C.

    [dim]gemel-run bundle/ --frames 100 --video out/ --results out/results.jsonl[/dim]
    """
    from .runtime.backends import check_backend
    from .runtime.bundle import open_bundle
    from .runtime.memory import parse_memory
    from .runtime.run import Options, run_bundle
    from .runtime.sinks.report import summary_table

    if backend is not None:
        check_backend(backend)
    try:
        size = parse_memory(memory) if memory is not None else None
    except ValueError as error:
        raise InputError(f"--memory: {memory!r} is not allowed: {error}") from error
    for path in (results, summary):
        check_writable(path)
    console = open_console()
    options = Options(
        backend=backend,
        memory=size,
        frames=frames,
        duration=duration,
        offline=offline,
        threads=threads,
        sources=dict(pair(item) for item in feed or ()),
        results=results,
        video=video,
        live_table=console.is_terminal,
    )
    opened = open_bundle(bundle)
    with Stop() as stop:

        def prepare(model: str) -> None:
            stop.check()
            console.print(f"preparing {model} for this device")

        try:
            outcome = run_bundle(opened, options, stop=stop.event, progress=prepare)
        except KeyboardInterrupt:
            console.print("stopped while models were prepared for this device; nothing was run")
            raise typer.Exit(stop.exit_code) from None
    console.print(summary_table(outcome))
    if summary is not None:
        outcome.write(summary)
    for what, path in (("results", results), ("summary", summary), ("video", video)):
        if path is not None:
            console.print(f"[bold]{what:>8}[/]  {path}")
    if outcome.failures:
        reasons = "; ".join(f"{name}: {' '.join(reason.split())}" for name, reason in outcome.failures.items())
        console.print(f"[red]failed:[/] {escape(reasons)}", soft_wrap=True)
        raise typer.Exit(1)
    if stop.exit_code and not any(feed.frames for feed in outcome.run.feeds.values()):
        console.print("stopped before the first frame")
        raise typer.Exit(stop.exit_code)
    console.print(f"Next: gemel inspect {bundle}")


def inspect(bundle: BundleArg, json_file: JsonOpt = None, debug: DebugOpt = False) -> None:
    """What is in a bundle, and what is shared.

    [dim]gemel inspect bundle/ --json bundle.json[/dim]
    """
    from .runtime.bundle import open_bundle
    from .runtime.inspect import describe, tables

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
    json_file: JsonOpt = None,
    debug: DebugOpt = False,
) -> None:
    """Check a bundle: every file's hash, also of what was baked for this device, and with --against every output.

    [dim]gemel check bundle/ --against examples/street/workload.yaml[/dim]
    """
    from .runtime.bake import verify_cache
    from .runtime.bundle import open_bundle, verify

    check_writable(json_file)
    console = open_console()
    opened = open_bundle(bundle)
    passed = list(verify(opened))
    console.print(f"[bold]{'files':>8}[/]  {len(passed)} files as the manifest says")
    caches = verify_cache(opened)
    for folder in caches:
        console.print(f"[bold]{'device':>8}[/]  {escape(str(folder))} as it was baked")
    report: dict[str, Any] = {"files": len(passed), "device": [str(folder) for folder in caches], "models": {}}
    failed: list[str] = []
    if against is not None:
        try:
            from .compiler.check import compare
            from .workload import load
        except ModuleNotFoundError as error:
            raise missing_extra(error, "gemel check --against", "compiler") from error
        for result in compare(opened, load(against), rtol=rtol, atol=atol):
            verdict = "[green]ok[/]" if result.passed else "[red]differs[/]"
            console.print(
                f"[bold]{'outputs':>8}[/]  {result.model}: relative difference {result.relative:.1e} {verdict}"
            )
            report["models"][result.model] = {"relative": result.relative, "passed": result.passed}
            failed += [] if result.passed else [result.model]
    write_json(json_file, report)
    if failed:
        console.print(f"[red]failed:[/] {', '.join(failed)}")
        raise typer.Exit(1)
    console.print(f"Next: gemel bench {bundle}")


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
    from .runtime.bench import measure, table
    from .runtime.bundle import open_bundle

    check_writable(json_file)
    console = open_console()
    opened = open_bundle(bundle)
    with tempfile.TemporaryDirectory(prefix="gemel-bench-") as folder:
        plain: dict[str, Path] | None = None
        if against is not None:
            try:
                from .compiler.plain import export_plain
                from .workload import load
            except ModuleNotFoundError as error:
                raise missing_extra(error, "gemel bench --against", "compiler") from error
            plain = export_plain(load(against), Path(folder))
        figures = measure(opened, rounds=rounds, plain=plain, say=lambda text: console.print(escape(text)))
    console.print(table(figures))
    write_json(json_file, figures)
    console.print(f"Next: gemel-run {bundle} --memory min")


app.command("compile")(compile_)
for _command in (run, inspect, check, bench):
    app.command()(_command)


def main() -> None:
    """Entry point of ``gemel``."""
    _guarded(app)


def compile_main() -> None:
    """Entry point of ``gemel-compile``."""
    single = typer.Typer(**_OPTIONS)
    single.command()(compile_)
    _guarded(single)


def run_main() -> None:
    """Entry point of ``gemel-run``."""
    single = typer.Typer(**_OPTIONS)
    single.command()(run)
    _guarded(single)


def _guarded(command: typer.Typer) -> None:
    try:
        command()
    except (GemelError, OSError) as error:
        if "--debug" in sys.argv:
            raise
        print_error(error)
        sys.exit(getattr(error, "exit_code", 1))
