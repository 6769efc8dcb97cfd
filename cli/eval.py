"""Command ``gemel eval``: measure processed frames and accuracy of a live bundle under several budgets and policies."""

from __future__ import annotations

from math import inf
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated

import typer

from ..console import (
    Stop,
    check_writable,
    missing_extra,
    open_console,
    parse_pair,
    print_failures,
    print_stage,
    progress_bar,
    write_json,
)
from ..errors import InputError
from .eval_offline import accept_precision, measure_staleness, refuse_flags
from .options import (
    BackendOpt,
    BandwidthOpt,
    BundleArg,
    ColdOpt,
    DebugOpt,
    JsonOpt,
    ObjectiveOpt,
    ThreadsOpt,
    loading_of,
)

if TYPE_CHECKING:
    from ..bundles.reader import Bundle

__all__ = ["eval_command"]


def eval_command(
    bundle: BundleArg,
    against: Annotated[
        Path | None,
        typer.Option(
            help="Unmerged bundle to run as well. Its answers with all weights in memory count as correct. Default: the"
            " answers of BUNDLE count as correct.",
            metavar="BUNDLE",
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            help="Budgets for weights; percentages refer to the unmerged bundle's weights. Default: min,50%,75%,all,"
            " without those that are too small for a model.",
            metavar="SIZE,...",
        ),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            help="Policies by which queries take turns if not all weights fit. Default: gemel,nexus.",
            metavar="NAME,...",
        ),
    ] = None,
    objective: ObjectiveOpt = None,
    seconds: Annotated[
        float | None, typer.Option(help="Length of each run in seconds. Default: 20.", show_default=False)
    ] = None,
    staleness: Annotated[
        Path | None,
        typer.Option(
            help="Run nothing live: measure how accurate each query's answer still is for later frames, and write these"
            " curves to this file (YAML, or JSON if it ends in .json).",
            metavar="FILE",
        ),
    ] = None,
    accept: Annotated[
        str | None,
        typer.Option(
            help="Run nothing live: compare answers in bf16 with those in float32, and let the backend auto-cpu use"
            " bf16 for models whose queries keep their target.",
            metavar="bf16",
        ),
    ] = None,
    frames: Annotated[
        int | None,
        typer.Option(help="Frames of each feed for --staleness and --accept. Default: 300.", min=1, show_default=False),
    ] = None,
    feed: Annotated[
        list[str] | None,
        typer.Option(help="Read a feed from this recording; may be given more than once.", metavar="NAME=FILE"),
    ] = None,
    backend: BackendOpt = None,
    threads: ThreadsOpt = None,
    cold: ColdOpt = False,
    bandwidth: BandwidthOpt = None,
    json_file: JsonOpt = None,
    debug: DebugOpt = False,
) -> None:
    """Measure processed frames and accuracy of a bundle that runs live, under each budget and policy.

    Until a query has answered a frame, its previous answer counts. Every answer is compared with the
    answer of the unmerged models, which have as much memory and time as they need.

    [dim]gemel eval bundle/ --against unmerged/ --memory min,50% --json eval.json[/dim]

    [dim]gemel eval bundle/ --staleness staleness.yaml[/dim]
    """
    from ..bundles.reader import open_bundle
    from ..runtime.backends import check_backend
    from ..runtime.planning.planner import check_objective, check_policy

    try:
        from ..check.evaluation.evaluate import EvaluationSettings
        from ..check.evaluation.evaluate import evaluate_bundles as run
        from ..check.evaluation.evaluation_report import best_run, evaluation_tables, evaluation_to_json
        from ..check.evaluation.reference import OfflineSettings
    except ModuleNotFoundError as error:
        raise missing_extra(error, "gemel eval", "eval") from error
    if backend is not None:
        check_backend(backend)
    live = {
        "--against": against,
        "--memory": memory,
        "--policy": policy,
        "--objective": objective,
        "--seconds": seconds,
        "--cold": cold or None,
        "--bandwidth": bandwidth,
        "--json": json_file,
    }
    sources = dict(parse_pair(item) for item in feed or ())
    offline = OfflineSettings(frames=frames or 300, backend=backend, threads=threads, sources=sources)
    if staleness is not None:
        refuse_flags("--staleness", {**live, "--accept": accept})
        measure_staleness(bundle, staleness, offline)
        return
    if accept is not None:
        refuse_flags("--accept", {**live, "--backend": backend})
        accept_precision(bundle, accept, offline)
        return
    if frames is not None:
        raise InputError("--frames: --staleness or --accept is needed with it; live runs have --seconds")
    seconds = 20.0 if seconds is None else seconds
    policies = tuple(dict.fromkeys(name.strip() for name in ("gemel,nexus" if policy is None else policy).split(",")))
    for name in policies:
        check_policy(name)
    check_objective(objective, policies)
    if not 0 < seconds < inf:
        raise InputError(f"--seconds: {seconds:g} is not allowed: more than 0 is expected")
    settings = EvaluationSettings(
        memory=None if memory is None else _sizes(memory),
        policies=policies,
        objective=objective,
        seconds=seconds,
        backend=backend,
        threads=threads,
        loading=loading_of(cold, bandwidth),
        sources=sources,
    )
    check_writable(json_file)
    opened, other = open_bundle(bundle), None if against is None else open_bundle(against)
    console, began = open_console(), perf_counter()
    with Stop() as stop, progress_bar(console, 100) as bar:
        bar.update(bar.task_ids[0], description="evaluating")
        said: set[tuple[str, str]] = set()

        def told(stage: str, what: str, part: float | None) -> None:
            stop.check()
            if (stage, what) not in said:
                said.add((stage, what))
                print_stage(console, stage, what, began=began)
            if part is not None:
                bar.update(bar.task_ids[0], completed=round(100 * part))

        try:
            found = run(opened, other, settings, stop=stop.event, told=told)
        except KeyboardInterrupt:
            console.print("stopped; nothing was judged")
            raise typer.Exit(stop.exit_code) from None
    whose = "of the unmerged models" if other else "of the bundle's own models"
    console.print(
        f"Each cell: frames processed in % / accuracy in %. The answers {whose}, with all weights in memory, count as"
        f" correct. Each frame is judged by the query's newest answer {_slas(opened)} ms after the frame"
        " arrived, which may be the answer to an earlier frame.",
        soft_wrap=True,
    )
    for table in evaluation_tables(found):
        console.print(table)
    if json_file is not None:
        write_json(json_file, evaluation_to_json(found))
        print_stage(console, "json", str(json_file), began=began)
    failures = {
        f"{run.case.bundle}, {name}": reason for run in found.runs for name, reason in run.summary.failures.items()
    }
    if failures:
        print_failures(console, failures)
        raise typer.Exit(1)
    case = best_run(found).case
    flags = f"--memory {case.budget}" + (f" --policy {case.policy}" if case.policy else "")
    if case.policy and (served := settings.objective_for(case.policy)):
        flags += f" --objective {served}"
    console.print(f"Next: gemel-run {bundle} {flags}", soft_wrap=True, markup=False)


def _slas(bundle: Bundle) -> str:
    """Return the SLAs of a bundle's queries in milliseconds, such as ``100``, or ``50 to 100`` if they differ."""
    known = [bundle.manifest.sla_of(query) for query in bundle.manifest.queries]
    return f"{min(known):g}" if min(known) == max(known) else f"{min(known):g} to {max(known):g}"


def _sizes(text: str) -> list[str | int]:
    from ..bundles.budget import parse_memory

    try:
        return list(dict.fromkeys(parse_memory(each.strip()) for each in text.split(",")))
    except ValueError as error:
        raise InputError(f"--memory: {text!r} is not allowed: {error}") from error
