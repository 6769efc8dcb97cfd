"""Command ``gemel merge``: retrain the models of a workload so that they share weights."""

from __future__ import annotations

import math
import re
from pathlib import Path
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.markup import escape

from ..console import Stop, missing_extra, open_console, print_stage
from ..errors import InputError
from .options import DebugOpt, WorkloadArg

if TYPE_CHECKING:
    from rich.progress import Progress

    from ..bundles.merge_report import MergeReport, QueryReport
    from ..merging.merge import Listener

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
    differences: Annotated[
        bool, typer.Option(help="Keep fine-tunes of one checkpoint as small differences to a common base.")
    ] = True,
    compress: Annotated[
        bool, typer.Option(help="Keep weights of 4 or 8 bits, in place of float32, where every query allows it.")
    ] = False,
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
    debug: DebugOpt = False,
) -> None:
    """Retrain the models of a workload so that they share weights and every query keeps its accuracy target.

    [dim]gemel merge examples/street/workload.yaml -o merged/ --budget 20m[/dim]
    """
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
    ):
        if value not in allowed:
            raise InputError(f"{flag}: {value!r} is not allowed: {', '.join(item for item in allowed if item)}")
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
            differences=differences,
            compress=compress,
            retrain=retrain,
        ),
        definition=cast("Any", definition),
        seed=seed,
        device=device,
        budget=parse_budget(budget) if budget is not None else None,
        resume=resume,
        ray=ray,
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
            report = merge_workload(load_workload(workload), output, options, _listener(bar, stop))
        except KeyboardInterrupt:
            bar.stop()
            what = "has what was found so far" if (output / MERGE_REPORT).exists() else "has nothing yet"
            line = f"stopped; {output} {what}. Next: the same command with --resume"
            console.print(escape(line), soft_wrap=True)
            raise typer.Exit(stop.exit_code) from None
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
    for line in _describe_parts(report):
        print_stage(console, "saving", line)
    if not report.finished:
        console.print("time is up; --resume goes on with a larger --budget")
    console.print(escape(f"Next: gemel-compile {output}/workload.yaml -o bundle/"), soft_wrap=True)


def _describe_parts(report: MergeReport) -> list[str]:
    """Return lines that say which part of a saving is sharing, which is compression, and what either alone gives."""
    parts = report.parts
    if parts is None:
        return []
    lines = [
        f"of the bytes of convolutions and linear layers: {parts.sharing:.1%} by sharing, {parts.compression:.1%} by"
        f" compression; sharing alone {parts.sharing_alone:.1%}, compression alone"
        f" {'not measured' if parts.compression_alone is None else format(parts.compression_alone, '.1%')}"
    ]
    if parts.compression_alone is not None and parts.compression_alone > report.layer_saving:
        lines.append("compression alone saves more than this merge: try --compress, or gemel-compile --precision int8")
    return lines


def _kept(found: QueryReport) -> str:
    """Return what one query keeps of its accuracy on the images that confirm, as text."""
    text = f"{found.reached:.1%} of {found.original:.1%}, {found.relative:.1%} of the original"
    names = (("own images", found.own), ("mix", found.mix), ("scores on the mix", found.scores))
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


def _listener(bar: Progress, stop: Stop) -> Listener:
    """Return a listener for a merge that prints a line per model and trial, and shows progress on a bar.

    The bar shows training steps, losses and accuracies.
    """
    from ..merging.merge import Listener

    console, began = bar.console, perf_counter()
    looked = [monotonic()]

    def say(stage: str, what: str) -> None:
        print_stage(console, stage, what, began=began)

    class Printer(Listener):
        def model(self, subject: Any) -> None:
            stop.check()
            scores = ", ".join(f"{held.query.name} {held.original:.1%}" for held in subject.held)
            say("model", f"{subject.name}: {len(subject.layers)} layers, {len(subject.train)} images; {scores}")

        def left_out(self, model: str, error: Exception) -> None:
            say("model", f"{model} stays as it is: {error}")

        def fine_tunes(self, models: Any) -> None:
            say("family", models.description)

        def trial(self, trial: Any) -> None:
            stop.check()
            for task in bar.task_ids:
                bar.remove_task(task)
            bar.add_task(escape(trial.group), total=None, steps="")

        def waiting(self) -> None:
            stop.check()

        def progress(self, progress: Any) -> None:
            stop.check()
            losses = " ".join(f"{model} {loss:.3f}" for model, loss in progress.losses.items())
            text = f"loss {losses}"
            if progress.accuracies:
                text += " accuracy " + " ".join(f"{query} {value:.1%}" for query, value in progress.accuracies.items())
            if bar.task_ids:
                steps = f"{progress.step} of {progress.steps} steps"
                bar.update(
                    bar.task_ids[-1],
                    completed=progress.step,
                    total=progress.steps,
                    description=escape(text),
                    steps=steps,
                )
            if not console.is_terminal and monotonic() - looked[0] > 30:
                looked[0] = monotonic()
                say("step", f"{progress.step} of {progress.steps}, {text}")

        def verdict(self, verdict: Any, report: Any) -> None:
            outcome = verdict.outcome
            worst = min(outcome.relative.items(), key=lambda item: item[1], default=("", 0.0))
            word = "accepted" if verdict.accepted else "measured" if verdict.trial.recipe is None else "not accepted"
            say(
                "trial",
                f"{verdict.trial.group}: {word} ({outcome.ended}); worst query {worst[0]} keeps {worst[1]:.1%};"
                f" {report.saving:.1%} saved; {outcome.samples} images in {outcome.seconds:.0f} s",
            )

    return Printer()
