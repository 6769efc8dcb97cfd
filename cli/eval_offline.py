"""Parts of ``gemel eval`` that run nothing live: staleness curves, and the accuracy of bf16."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from time import perf_counter
from typing import TYPE_CHECKING, Any

import typer
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from ..console import Stop, check_writable, open_console, print_failures, print_stage, progress_bar
from ..durable import write_through
from ..errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from ..bundles.reader import Bundle
    from ..check.evaluation.reference import OfflineSettings
    from ..check.evaluation.staleness_curves import CurveMeasurement
    from ..runtime.ov.accepted import Acceptance

__all__ = ["accept_precision", "measure_staleness", "refuse_flags"]

_SHOWN_S = (0.1, 0.5, 1.0, 2.0)
"""Ages in seconds at which the table of staleness curves shows accuracies."""


def refuse_flags(flag: str, others: Mapping[str, Any]) -> None:
    """Refuse flags that have no meaning beside a flag of ``gemel eval`` that runs nothing live.

    Args:
        flag: flag that was given.
        others: flag -> its value; None if it was not given.

    Raises:
        InputError: another flag was given.
    """
    for name, value in others.items():
        if value is not None:
            raise InputError(f"{name}: cannot be given with {flag}, which runs nothing live")


def measure_staleness(bundle: Path, output: Path, settings: OfflineSettings) -> None:
    """Measure the staleness curves of a bundle's queries, print a table of them, and write them into a file.

    Raises:
        InputError: no query has a curve, or the file cannot be written.
        Exit: some queries have no curve, with status 1; or the measurement was stopped.
    """
    from ..bundles.reader import open_bundle
    from ..check.evaluation.staleness_curves import curves_text, measure_curves

    check_writable(output)
    opened = open_bundle(bundle)
    console, began = open_console(), perf_counter()
    with _stoppable(console, "no curve was written") as (stop, told):
        found = measure_curves(opened, settings, stop=stop, told=told)
    print_stage(console, "answers", f"up to {settings.frames} frames of each feed", began=began)
    if not found.curves:
        raise InputError("no curve: " + "; ".join(f"query {name}: {reason}" for name, reason in found.omitted.items()))
    console.print(_curves_table(found))
    for name, each in found.curves.items():
        if each.rises:
            print_stage(console, "rises", f"{name}: old answers become more accurate again, so its scene may repeat")
    try:
        write_through(output, curves_text(found, opened, output).encode())
    except OSError as error:
        raise InputError(f"{output}: cannot be written: {error.strerror}") from error
    print_stage(console, "curves", f"{output}, {len(found.curves)} queries", began=began)
    if found.omitted:
        print_failures(console, found.omitted)
        raise typer.Exit(1)
    console.print(
        f"Next: gemel-run {bundle} --staleness {output} --objective accuracy --memory 50%",
        soft_wrap=True,
        markup=False,
    )


def accept_precision(bundle: Path, precision: str, settings: OfflineSettings) -> None:
    """Compare a bundle's answers in bf16 with those in float32, and keep the outcome for the backend ``auto-cpu``.

    Raises:
        InputError: the precision is not ``bf16``.
        MissingExtraError: OpenVINO is not installed.
        BackendError: this CPU does not compute in bf16, or the device cache cannot be written.
        Exit: the measurement was stopped.
    """
    from ..bundles.reader import open_bundle
    from ..check.evaluation.accept import measure_bf16
    from ..runtime.ov.accepted import write_acceptance

    if precision != "bf16":
        raise InputError(f"--accept: {precision!r} is not allowed: bf16 is expected")
    opened = open_bundle(bundle)
    console, began = open_console(), perf_counter()
    with _stoppable(console, "nothing was accepted") as (stop, told):
        found = measure_bf16(opened, settings, stop=stop, told=told)
    print_stage(console, "answers", f"up to {settings.frames} frames of each feed, twice", began=began)
    console.print(_acceptance_table(opened, found))
    print_stage(console, "kept", str(write_acceptance(opened, found)), began=began)
    console.print(f"Next: gemel-run {bundle} --backend auto-cpu", soft_wrap=True, markup=False)


@contextmanager
def _stoppable(console: Console, stopped: str) -> Iterator[tuple[Event, Callable[[int, int], None]]]:
    """Show a progress bar, and end the command with a signal's exit status if a signal arrived.

    Args:
        console: console to print to.
        stopped: message that a stopped command prints, which says what was not done.

    Yields:
        Event that is set by a signal; and a function that shows progress, called with the number of answers so far and
        the number expected.
    """
    with Stop() as stop, progress_bar(console, 1) as bar:
        bar.update(bar.task_ids[0], description="answering")

        def told(done: int, total: int) -> None:
            bar.update(bar.task_ids[0], completed=done, total=total)

        try:
            yield stop.event, told
            stop.check()
        except KeyboardInterrupt:
            console.print(f"stopped; {stopped}")
            raise typer.Exit(stop.exit_code) from None


def _curves_table(found: CurveMeasurement) -> Table:
    """Return a table of staleness curves: a row per query, with the accuracy in % at some ages."""
    table = Table("query", title="accuracy in % of old answers", title_justify="left", box=SIMPLE)
    for title in ("fps", "frames", "objects", *(f"{age:g} s" for age in _SHOWN_S)):
        table.add_column(title, justify="right")
    for name, each in found.curves.items():
        known, cells = each.staleness, []
        for age in _SHOWN_S:
            frames = round(age * known.fps)
            there = 1 <= frames <= len(known.curve)
            cells.append(f"{known.curve[frames - 1]:.1%}".rstrip("%") if there else "-")
        objects = "-" if each.objects is None else str(each.objects)
        table.add_row(escape(name), f"{known.fps:g}", str(known.frames), objects, *cells)
    return table


def _acceptance_table(bundle: Bundle, found: Acceptance) -> Table:
    """Return a table of the agreement of bf16 answers with float32 answers: a row per query."""
    table = Table("query", "model", title="bf16 beside float32", title_justify="left", box=SIMPLE)
    for title in ("agreement", "frames", "target", "model in bf16"):
        table.add_column(title, justify="right")
    accepted = found.models(bundle)
    for name, each in found.queries.items():
        model = bundle.manifest.queries[name].model
        agreed = (
            f"{each.agreement:.4f}" if each.agreement is not None else "no frames" if not each.frames else "nothing"
        )
        allowed = "accepted" if model in accepted else "refused"
        target = f"{bundle.manifest.queries[name].target:g}"
        table.add_row(escape(name), escape(model), agreed, str(each.frames), target, allowed)
    return table
