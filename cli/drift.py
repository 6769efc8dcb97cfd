"""Command ``gemel drift``: judge by samples whether a merged bundle still answers as the original models do."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..console import Stop, check_writable, missing_extra, open_console, print_stage, progress_bar, write_json
from ..errors import GemelError, InputError
from .apply import KeyOpt, ReloadPortOpt
from .options import BackendOpt, BundleArg, DebugOpt, JsonOpt, ThreadsOpt
from .remote import HostOpt, TokenOpt, reload_command
from .revert import reverted_lines
from .sample_flags import SinceOpt, period_of, since_of

if TYPE_CHECKING:
    from rich.console import Console

    from ..bundles.reader import Bundle
    from ..check.drift.follow import Round
    from ..check.drift.judge import DriftJudge
    from ..check.drift.reverting import Reverting

__all__ = ["REVERT_EXIT", "drift_command"]

_ON_CPUS = ("ort-cpu", "auto-cpu", "openvino", "openvino-fast")
"""Backends that --ray allows."""
REVERT_EXIT = 3
"""Exit status if a query should be reverted; 1 and 2 are errors, as for every command."""


def drift_command(
    bundle: BundleArg,
    samples: Annotated[
        str, typer.Argument(help="Folder of samples, or its address in a store.", metavar="DIR|s3://...")
    ],
    originals: Annotated[
        Path,
        typer.Option(help="Bundle of the original models, or their workload.yaml.", metavar="BUNDLE|WORKLOAD.YAML"),
    ],
    since: SinceOpt = None,
    window: Annotated[str, typer.Option(help="Length of a window of time.", metavar="TIME")] = "1h",
    false_reverts: Annotated[
        float,
        typer.Option(
            help="Chance that a query which keeps its target is reverted within 20 samples.", min=1e-9, max=0.5
        ),
    ] = 0.001,
    follow: Annotated[bool, typer.Option("--follow", help="Go on with new samples until stopped.")] = False,
    every: Annotated[
        str, typer.Option(help="With --follow, time after which new samples are looked for.", metavar="TIME")
    ] = "30s",
    metrics: Annotated[
        Path | None,
        typer.Option(help="Write a metric text file (.prom) for Prometheus' node exporter.", metavar="FILE"),
    ] = None,
    revert: Annotated[
        bool,
        typer.Option("--revert", help="Revert each query with that verdict in BUNDLE, as gemel revert does it, once."),
    ] = False,
    key: KeyOpt = None,
    port: ReloadPortOpt = None,
    host: HostOpt = "127.0.0.1",
    token_file: TokenOpt = None,
    backend: BackendOpt = None,
    threads: ThreadsOpt = None,
    ray: Annotated[
        str | None,
        typer.Option(help="Answer on the CPUs of Ray workers: local, or the address of a cluster.", metavar="ADDRESS"),
    ] = None,
    json_file: JsonOpt = None,
    debug: DebugOpt = False,
) -> None:
    """Judge by samples whether a merged bundle still answers as the original models do.

    The original models answer the stored frames. A query whose accuracy relative to them falls below
    its target should be reverted to its original weights; the exit status is then 3.

    [dim]gemel drift bundle/ samples/ --originals original/[/dim]

    [dim]gemel drift bundle/ s3://bucket/box7 --originals original/ --follow --metrics drift.prom[/dim]

    [dim]gemel drift bundle/ samples/ --originals original/ --follow --revert --port 9464[/dim]
    """
    from ..bundles.reader import open_bundle
    from ..bundles.signature import read_public_key
    from ..runtime.backends import check_backend

    try:
        from ..check.drift.bundle_answers import BundleAnswers, open_originals
        from ..check.drift.drift_report import check_metrics, drift_lines, drift_table, drift_to_json, write_metrics
        from ..check.drift.follow import judge_new, rounds
        from ..check.drift.judge import DriftJudge, DriftLimits
        from ..check.drift.ray_answers import RayAnswers, RayCluster
        from ..check.drift.reverting import Reverting
        from ..runtime.sinks.sample_files import open_samples
    except ModuleNotFoundError as error:
        raise missing_extra(error, "gemel drift", "eval") from error
    if backend is not None:
        check_backend(backend)
    if not revert and (key, port) != (None, None):
        raise InputError("--key and --port: give --revert with them")
    public = None if key is None else read_public_key(key)
    begin = since_of(since)
    limits = DriftLimits(false_reverts=false_reverts, window_s=period_of("--window", window))
    pause = period_of("--every", every)
    for path in (json_file, metrics):
        check_writable(path)
    if metrics is not None:
        check_metrics()
    console = open_console()
    store = open_samples(samples)
    if not follow and not store.names():
        raise InputError(f"{store.shown}: has no samples; gemel-run --samples writes them")

    def tell(what: str) -> None:
        print_stage(console, "compile", what)

    def reload() -> None:
        if port is not None:
            reload_command(port, bundle, host, token_file)

    def act(judge: DriftJudge, reverting: Reverting) -> None:
        """Revert queries, if that was asked for, and write reports."""
        if revert:
            _act(console, reverting)
        if json_file is not None:
            acted = {"bundle_now": reverting.bundle_id, "troubles": reverting.troubles}
            write_json(json_file, {**drift_to_json(judge), **acted})
        if metrics is not None:
            write_metrics(metrics, judge)

    def judge_samples(judge: DriftJudge, reverting: Reverting, stop: Stop) -> Bundle | None:
        """Judge the samples, with --follow until stopped; return the bundle that has replaced the judged one before."""
        if not follow:
            with progress_bar(console, 0) as bar:
                bar.update(bar.task_ids[0], description="judging")
                judge_new(
                    judge,
                    store,
                    stop=stop.event,
                    told=lambda done, total: bar.update(bar.task_ids[0], completed=done, total=total),
                )
            act(judge, reverting)
            return None
        for found in rounds(judge, store, pause, stop.event, known):
            _print_round(console, found, judge)
            act(judge, reverting)
            if (newer := _replaced(bundle, reverting)) is not None:
                line = f"{bundle}: is another bundle now, {newer.id[:12]}, and is judged from here on"
                console.print(line, soft_wrap=True, markup=False)
                return newer
        return None

    first = open_bundle(bundle)
    if ray is not None and (backend or first.manifest.device.backend) not in _ON_CPUS:
        raise InputError(f"--ray: workers answer on CPUs; give --backend with one of {', '.join(_ON_CPUS)}")
    judged: Bundle | None = first
    known: set[str] = set()
    with (
        Stop() as stop,
        open_originals(originals, tell) as original,
        nullcontext() if ray is None else RayCluster(ray, threads) as cluster,
    ):

        def answers_of(each: Bundle) -> BundleAnswers | RayAnswers:
            return BundleAnswers(each, backend, threads) if cluster is None else RayAnswers(each, cluster, backend)

        with answers_of(original) as theirs:
            while judged is not None:
                with answers_of(judged) as ours:
                    judge = DriftJudge(ours, theirs, limits, begin)
                    reverting = Reverting(bundle, judge, reload, public)
                    judged = judge_samples(judge, reverting, stop)
    console.print(drift_table(judge))
    for line in drift_lines(judge):
        console.print(line, soft_wrap=True, markup=False)
    console.print(
        f"A query that keeps its target is reverted within {limits.samples} samples with a chance of at most"
        f" {limits.false_reverts:g}.",
        soft_wrap=True,
    )
    if json_file is not None:
        print_stage(console, "json", str(json_file))
    _exit(judge, reverting, stop.exit_code, follow)


def _print_round(console: Console, found: Round, judge: DriftJudge) -> None:
    """Print a line about each verdict that has changed, and about a folder that cannot be read."""
    from ..check.drift.drift_report import since_line

    for query, (before, now) in found.changes.items():
        console.print(f"query {query}: {now} (before: {before})", soft_wrap=True, markup=False)
        if now == "revert":
            console.print(since_line(query, judge.drifts[query]), soft_wrap=True, markup=False)
    if found.trouble is not None:
        console.print(f"samples: {found.trouble}", soft_wrap=True, markup=False)


def _act(console: Console, reverting: Reverting) -> None:
    """Revert the queries that should be, and print what was done, and what failed unless it failed before."""
    earlier = reverting.troubles
    for done in reverting.act():
        for line in reverted_lines(done):
            console.print(line, soft_wrap=True, markup=False)
    for line in reverting.troubles:
        if line not in earlier:
            console.print(line, soft_wrap=True, markup=False)


def _replaced(bundle: Path, reverting: Reverting) -> Bundle | None:
    """Return the bundle in a folder if it is neither the judged one nor made of it by a revert; None if it is."""
    from ..bundles.reader import open_bundle

    try:
        found = open_bundle(bundle)
    except GemelError:
        # It is looked at again in the next round.
        return None
    return found if found.id != reverting.bundle_id else None


def _exit(judge: DriftJudge, reverting: Reverting, signal: int, follow: bool) -> None:
    """End with the exit status that verdicts, failures and signals give."""
    if reverting.troubles:
        raise typer.Exit(1)
    if any(drift.verdict == "revert" for drift in judge.drifts.values()):
        raise typer.Exit(REVERT_EXIT)
    if signal and not follow:
        raise typer.Exit(signal)
