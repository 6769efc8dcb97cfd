"""Command ``gemel run``, which is also ``gemel-run``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..console import Stop, check_writable, open_console, parse_pair, print_failures, print_stage
from .options import (
    BackendOpt,
    BandwidthOpt,
    BundleArg,
    ColdOpt,
    DebugOpt,
    MemoryOpt,
    ThreadsOpt,
    VersionOpt,
    loading_of,
    memory_of,
)

__all__ = ["run_command"]


def run_command(
    bundle: BundleArg,
    memory: MemoryOpt = None,
    backend: BackendOpt = None,
    frames: Annotated[
        int | None, typer.Option(help="Frames of each feed after which to stop. Default: no limit.", min=1)
    ] = None,
    duration: Annotated[
        float | None, typer.Option(help="Seconds after which to stop. Default: no limit.", min=0.001)
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Run every query on every frame, as fast as the models can.")
    ] = False,
    feed: Annotated[
        list[str] | None,
        typer.Option(help="Read a feed from this source; may be given more than once.", metavar="NAME=SOURCE"),
    ] = None,
    results: Annotated[Path | None, typer.Option(help="Write results.jsonl to this file.", metavar="FILE")] = None,
    summary: Annotated[
        Path | None, typer.Option("--json", help="Write summary.json to this file.", metavar="FILE")
    ] = None,
    video: Annotated[
        Path | None, typer.Option(help="Write one annotated video per feed to this folder.", metavar="DIR")
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Write a Chrome trace of loading, running and decoding.", metavar="FILE")
    ] = None,
    policy: Annotated[
        str, typer.Option(help="Policy by which queries take turns if not all weights fit.", metavar="NAME")
    ] = "gemel",
    cold: ColdOpt = False,
    bandwidth: BandwidthOpt = None,
    threads: ThreadsOpt = None,
    version: VersionOpt = False,
    debug: DebugOpt = False,
) -> None:
    """Run every query of a bundle on its feed, until the feeds end or Ctrl-C is pressed.

    [dim]gemel-run bundle/ --frames 100 --video out/ --results out/results.jsonl[/dim]
    """
    from ..bundles.reader import open_bundle
    from ..runtime.backends import check_backend
    from ..runtime.planning.planner import check_policy
    from ..runtime.run import RunOptions, run_bundle
    from .summary_table import summary_table

    if backend is not None:
        check_backend(backend)
    size = memory_of(memory)
    check_policy(policy)
    for path in (results, summary, trace):
        check_writable(path)
    console = open_console()
    options = RunOptions(
        backend=backend,
        memory=size,
        policy=policy,
        loading=loading_of(cold, bandwidth),
        frames=frames,
        duration=duration,
        offline=offline,
        threads=threads,
        sources=dict(parse_pair(item) for item in feed or ()),
        results=results,
        video=video,
        trace=trace,
        live_table=console.is_terminal,
    )
    opened = open_bundle(bundle)
    said: list[str] = []
    with Stop() as stop:

        def prepare(model: str) -> None:
            stop.check()
            console.print(f"preparing {model} for this device")

        def measure(what: str) -> None:
            stop.check()
            if not said:
                said.append(what)
                console.print("measuring load and run times, once for this device")

        try:
            outcome = run_bundle(opened, options, stop=stop.event, progress=prepare, profiling=measure)
        except KeyboardInterrupt:
            console.print("stopped while models were prepared for this device; nothing was run")
            raise typer.Exit(stop.exit_code) from None
    console.print(summary_table(outcome))
    if summary is not None:
        outcome.write(summary)
    for what, path in (("results", results), ("summary", summary), ("video", video), ("trace", trace)):
        if path is not None:
            print_stage(console, what, str(path))
    if outcome.failures:
        print_failures(console, outcome.failures)
        raise typer.Exit(1)
    if stop.exit_code and not any(feed.frames for feed in outcome.run.feeds.values()):
        console.print("stopped before the first frame")
        raise typer.Exit(stop.exit_code)
    console.print(f"Next: gemel inspect {bundle}")
