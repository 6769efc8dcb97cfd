"""Command ``gemel merge``: retrain the models of a workload so that they share weights."""

from __future__ import annotations

import math
import re
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.markup import escape

from ..console import Stop, missing_extra, open_console, print_stage
from ..errors import InputError
from .difference_tables import describe_parts
from .merge_progress import merge_listener, publish_steps, what_helps
from .options import DebugOpt, WorkloadArg
from .sample_flags import SinceOpt, since_of

if TYPE_CHECKING:
    from ..bundles.merge_report import QueryReport

__all__ = ["merge_command", "parse_budget"]

_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600}
"""Unit of time in the flag ``--budget`` -> its length in seconds."""


def merge_command(
    workload: WorkloadArg,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder to write the merged workload to.", metavar="MERGED")
    ],
    budget: Annotated[
        str | None,
        typer.Option(
            help="Time to stop after, with the best result so far: 90s, 20m, 2h. Default: no limit.", metavar="TIME"
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a merge that was stopped.")] = False,
    name: Annotated[
        str,
        typer.Option(
            "--strategy",
            help="Search strategy: together, or one to compare with: heaviest (the paper's), earliest, latest, random,"
            " two-group, one-model.",
            metavar="NAME",
        ),
    ] = "together",
    differences: Annotated[bool, typer.Option(help="Keep fine-tunes as small differences to a common base.")] = True,
    compress: Annotated[bool, typer.Option(help="Keep weights of 4 or 8 bits where every query allows it.")] = False,
    retrain: Annotated[bool, typer.Option(help="Retrain models so that they share whole layers.")] = True,
    inside: Annotated[bool, typer.Option(help="Let layers inside one model share too.")] = True,
    folds: Annotated[
        int,
        typer.Option(
            help="Times to try to halve the different blocks inside models after everything is shared.", min=0
        ),
    ] = 1,
    steps: Annotated[int, typer.Option(help="Batches of each model in the first training round.", min=1)] = 160,
    epochs: Annotated[int, typer.Option(help="Epochs in a trial of any strategy but together.", min=1)] = 10,
    batch: Annotated[
        int | None, typer.Option(help="Images in a batch. Default: 64 of 64 x 64 pixels, or fewer if larger.", min=2)
    ] = None,
    rate: Annotated[float | None, typer.Option(help="Learning rate. Default: the strategy's.")] = None,
    start: Annotated[
        str | None,
        typer.Option(
            help="Starting weights of shared layers: donor, first or average. Default: the strategy's.", metavar="NAME"
        ),
    ] = None,
    supervision: Annotated[
        str | None,
        typer.Option(
            help="What models learn from: teacher (the original's outputs), labels, or both. Default: the strategy's.",
            metavar="NAME",
        ),
    ] = None,
    definition: Annotated[
        str, typer.Option(help="Layers that may share, as in gemel analyze.", metavar="shape|strict")
    ] = "shape",
    seed: Annotated[int, typer.Option(help="Random seed; equal seeds repeat a merge on one machine.")] = 0,
    device: Annotated[str, typer.Option(help="Device to train on: auto, cpu or cuda.")] = "auto",
    ray: Annotated[
        str | None,
        typer.Option(
            help="Run independent trials as Ray tasks: local, or the address of a cluster.", metavar="ADDRESS"
        ),
    ] = None,
    earlier: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Folder of an earlier merge to go on from with --samples; only queries below their targets change.",
            metavar="MERGED",
        ),
    ] = None,
    samples: Annotated[
        str | None,
        typer.Option(
            help="Frames that boxes have sampled, to train on and judge by: a folder, or s3://...", metavar="DIR"
        ),
    ] = None,
    since: SinceOpt = None,
    publish: Annotated[
        Path | None,
        typer.Option(help="Folder to publish each step to, as a delta that gemel pull follows.", metavar="DIR"),
    ] = None,
    originals: Annotated[
        bool, typer.Option("--originals", help="Keep original weights in what is published, for gemel revert.")
    ] = False,
    sign: Annotated[
        Path | None, typer.Option(help="PEM file with the private ed25519 key that signs deltas.", metavar="KEY.PEM")
    ] = None,
    debug: DebugOpt = False,
) -> None:
    """Retrain the models of a workload so that they share weights and every query keeps its accuracy target.

    [dim]gemel merge examples/street/workload.yaml -o merged/ --budget 20m[/dim]
    """
    # Imports take seconds, on a busy machine minutes; they count towards the budget.
    began = monotonic()
    try:
        from ..bundles.merge_report import MERGE_REPORT
        from ..merging.merge import MergeOptions, merge_workload
        from ..merging.strategies import SearchSettings
        from ..workload import load_workload
    except ModuleNotFoundError as error:
        raise missing_extra(error, "gemel merge", "merge") from error
    for flag, value, allowed in (
        ("--definition", definition, ("shape", "strict")),
        ("--start", start, (None, "donor", "first", "average")),
        ("--supervision", supervision, (None, "teacher", "labels", "both")),
    ):
        if value not in allowed:
            raise InputError(f"{flag}: {value!r} is not allowed: {', '.join(item for item in allowed if item)}")
    if sign is not None and publish is None:
        raise InputError("--sign: only deltas are signed; give --publish DIR")
    if originals and publish is None:
        raise InputError("--originals: only published bundles keep original weights; give --publish DIR")
    if since is not None and samples is None:
        raise InputError("--since: limits samples; give --samples DIR")
    if rate is not None and not 0 < rate < math.inf:
        raise InputError(f"--rate: {rate} is not allowed: a number above 0 is expected")
    options = MergeOptions(
        strategy=name,
        settings=SearchSettings(
            inside=inside,
            folds=folds,
            steps=steps,
            epochs=epochs,
            batch=batch,
            rate=rate,
            start=cast("Any", start),
            supervision=cast("Any", supervision),
            differences=differences,
            compress=compress,
            retrain=retrain,
        ),
        definition=cast("Any", definition),
        seed=seed,
        device=device,
        budget=parse_budget(budget) - (monotonic() - began) if budget is not None else None,
        resume=resume,
        ray=ray,
        earlier=earlier,
        samples=samples,
        since=since_of(since),
    )
    console = open_console()
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[steps]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with Stop() as stop, bar:
        try:
            before = workload if originals else None
            publishing = publish_steps(publish, sign, before, output) if publish is not None else None
            listener = merge_listener(bar, stop, publishing)
            report = merge_workload(load_workload(workload), output, options, listener)
        except KeyboardInterrupt:
            bar.stop()
            what = "has what was found so far" if (output / MERGE_REPORT).exists() else "has nothing yet"
            line = f"stopped; {output} {what}. Next: the same command with --resume"
            console.print(escape(line), soft_wrap=True)
            raise typer.Exit(stop.exit_code) from None
    if publishing is not None and (line := publishing("end")):
        print_stage(console, "publish", line)
    for query, found in report.queries.items():
        print_stage(console, "query", f"{query}: {_kept(found)}")
        for note in found.notes:
            print_stage(console, "query", f"{query}: {note}")
    print_stage(
        console,
        "weights",
        f"{report.original_bytes / 1e6:.2f} MB, merged {report.merged_bytes / 1e6:.2f} MB:"
        f" {report.saving:.1%} saved, of {report.potential:.1%} that models could share with each other",
    )
    for line in describe_parts(report):
        print_stage(console, "saving", line)
    if not report.finished:
        console.print(escape(what_helps(report, listener, monotonic() - began)), soft_wrap=True)
    console.print(escape(f"Next: gemel-compile {output}/workload.yaml -o bundle/"), soft_wrap=True)


def _kept(found: QueryReport) -> str:
    """Return what one query keeps of its accuracy on the images that confirm, as text."""
    text = f"{found.reached:.1%} of {found.original:.1%}, {found.relative:.1%} of the original"
    names = (
        ("own images", found.own),
        ("mix", found.mix),
        ("scores on the mix", found.scores),
        ("samples", found.samples),
    )
    parts = [
        f"{name} {part.low:.3f} to {part.high:.3f}, n={part.images}" for name, part in names if part and part.images
    ]
    return f"{text} (target {found.target:.0%}{''.join(f'; {part}' for part in parts)})"


def parse_budget(text: str) -> float:
    """Return the seconds of a time such as ``90s``, ``20m`` or ``2h``.

    >>> parse_budget("1.5h")
    5400.0

    Raises:
        InputError: ``text`` is not a time above 0.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|m|min|h)\s*", text)
    if not match or float(match[1]) == 0:
        raise InputError(f"--budget: {text!r} is not allowed: a time such as 90s, 20m or 2h is expected")
    return float(match[1]) * _UNITS[match[2]]
