"""Command ``gemel run``, which is also ``gemel-run``: run every query of a bundle on its feed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..console import Stop, check_writable, open_console, parse_pair, print_failures, print_stage
from ..streams import forgive_output
from .options import (
    BackendOpt,
    BandwidthOpt,
    BundleArg,
    ColdOpt,
    DebugOpt,
    MemoryOpt,
    ObjectiveOpt,
    StalenessOpt,
    ThreadsOpt,
    VersionOpt,
    curves_of,
    loading_of,
    memory_of,
)
from .sample_flags import sampling_of

if TYPE_CHECKING:
    from ..bundles.output_specs import OutputSpec

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
    env: Annotated[
        list[str] | None,
        typer.Option(
            help="Let the bundle use this environment variable in cameras' addresses and in outputs; may be given more"
            " than once. Names that begin with GEMEL_ are always allowed.",
            metavar="VAR",
        ),
    ] = None,
    outputs: Annotated[
        Path | None,
        typer.Option(
            help="File with the key outputs, as in a workload, to replace the bundle's outputs; none for no outputs.",
            metavar="FILE.yaml",
        ),
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(help="Append results to this file as JSON lines; - for the standard output.", metavar="FILE"),
    ] = None,
    summary: Annotated[
        Path | None, typer.Option("--json", help="Write summary.json to this file.", metavar="FILE")
    ] = None,
    video: Annotated[
        Path | None, typer.Option(help="Write annotated videos of every feed to this folder.", metavar="DIR")
    ] = None,
    samples: Annotated[
        Path | None,
        typer.Option(help="Write frames with the answers given to this folder, for gemel drift.", metavar="DIR"),
    ] = None,
    sample_every: Annotated[
        str | None, typer.Option(help="Time between two samples of a query. Default: 30s.", metavar="TIME")
    ] = None,
    sample_hook: Annotated[
        str | None,
        typer.Option(
            help="Python function that gets each sampled frame and its answers, and returns the frame to store, such as"
            " one with blurred faces, or None to store nothing.",
            metavar="MODULE:FUNCTION",
        ),
    ] = None,
    sample_upload: Annotated[
        str | None,
        typer.Option(help="Move samples to this folder of a store. Default: samples stay here.", metavar="s3://..."),
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Write a Chrome trace of loading, running and decoding.", metavar="FILE")
    ] = None,
    policy: Annotated[
        str, typer.Option(help="Policy by which queries take turns if not all weights fit.", metavar="NAME")
    ] = "gemel",
    objective: ObjectiveOpt = None,
    staleness: StalenessOpt = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            help="Serve metrics for Prometheus, health, status and a live page on this port; 0 for any free one.",
            metavar="PORT",
            min=0,
            max=65535,
        ),
    ] = None,
    metrics_host: Annotated[
        str, typer.Option(help="Address to serve on. Other than the loopback, it needs a token.", metavar="HOST")
    ] = "127.0.0.1",
    token_file: Annotated[
        Path | None,
        typer.Option(
            help="File with the token that requests must have. Default: the variable GEMEL_TOKEN, or no token.",
            metavar="FILE",
        ),
    ] = None,
    log_level: Annotated[
        str, typer.Option(help="Least level of log lines: debug, info, warning or error.", metavar="LEVEL")
    ] = "warning",
    log_json: Annotated[bool, typer.Option("--log-json", help="Write log lines as JSON objects.")] = False,
    cold: ColdOpt = False,
    bandwidth: BandwidthOpt = None,
    threads: ThreadsOpt = None,
    version: VersionOpt = False,
    debug: DebugOpt = False,
) -> None:
    """Run every query of a bundle on its feed, until the feeds end or Ctrl-C is pressed.

    A run without a terminal reads the bundle again from disk when it gets SIGHUP.

    [dim]gemel-run bundle/ --frames 100 --video out/ --results out/results.jsonl[/dim]
    """
    from ..bundles.output_specs import STDOUT
    from ..bundles.reader import open_bundle
    from ..runtime.backends import check_backend
    from ..runtime.planning.planner import check_objective, check_policy
    from ..runtime.run import RunOptions, run_bundle
    from ..runtime.service.logs import set_up_logging
    from ..runtime.service.run_service import ServiceOptions
    from ..runtime.service.token import read_token
    from .summary_table import summary_table

    # A run without anybody who reads its lines is still a run.
    forgive_output()
    set_up_logging(log_level, as_json=log_json)
    if backend is not None:
        check_backend(backend)
    size = memory_of(memory)
    check_policy(policy)
    check_objective(objective, (policy,))
    sources = dict(parse_pair(item) for item in feed or ())
    # Outputs that cannot be written do not stop the cameras: they are tried again while the run goes on.
    for path in (summary, trace):
        check_writable(path)
    opened = open_bundle(bundle)
    curves = curves_of(staleness, opened.manifest.queries)
    given = None if outputs is None else _outputs_of(outputs)
    chosen = opened.manifest.outputs if given is None else given
    sampled = sampling_of(chosen, samples, sample_every, sample_hook, sample_upload)
    to_stdout = str(results) == STDOUT or any(each.jsonl and each.jsonl.path == STDOUT for each in chosen)
    console = open_console(stderr=to_stdout)
    for each in chosen:
        print_stage(console, "output", f"{each.kind or 'unknown'}: {each.target}")
    options = RunOptions(
        backend=backend,
        memory=size,
        policy=policy,
        objective=objective,
        staleness=curves,
        loading=loading_of(cold, bandwidth),
        frames=frames,
        duration=duration,
        offline=offline,
        threads=threads,
        sources=sources,
        variables=env or (),
        outputs=given,
        results=results,
        video=video,
        samples=sampled.spec,
        sample_hook=sampled.hook,
        sample_upload=sample_upload,
        trace=trace,
        summary=summary,
        live_table=console.is_terminal and not to_stdout,
        service=ServiceOptions(
            metrics_port,
            metrics_host,
            read_token(token_file),
            notify=True,
            listening=lambda url: print_stage(console, "serving", url),
        ),
    )
    said: list[str] = []
    with Stop(reloads=not offline) as stop:

        def prepare(model: str) -> None:
            stop.check()
            console.print(f"preparing {model} for this device")

        def measure(what: str) -> None:
            stop.check()
            if not said:
                said.append(what)
                console.print("measuring load and run times, once for this device")

        try:
            outcome = run_bundle(
                opened, options, stop=stop.event, reload=stop.reload, progress=prepare, profiling=measure
            )
        except KeyboardInterrupt:
            console.print("stopped while models were prepared for this device; nothing was run")
            raise typer.Exit(stop.exit_code) from None
    console.print(summary_table(outcome))
    files = {"results": results, "summary": summary, "video": video, "samples": samples, "trace": trace}
    for what, path in files.items():
        written = what != "summary" or outcome.unwritten is None
        if path is not None and str(path) != STDOUT and written:
            print_stage(console, what, str(path))
    if outcome.failures:
        print_failures(console, outcome.failures)
        raise typer.Exit(1)
    if stop.exit_code and not any(feed.delivered for feed in outcome.run.feeds.values()):
        console.print("stopped before the first frame")
        return
    console.print(f"Next: gemel inspect {bundle}")


def _outputs_of(file: Path) -> Sequence[OutputSpec]:
    """Read the outputs in the file that ``--outputs`` names; return an empty list for the word ``none``."""
    if str(file) == "none":
        return ()
    from ..workload.document.load_outputs import load_outputs

    return load_outputs(file)
