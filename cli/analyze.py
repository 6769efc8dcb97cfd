"""Command ``gemel analyze``: show which layers the models of a workload could share, and the bytes this would save."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from ..console import check_writable, missing_extra, open_console, print_stage, progress_bar, write_json
from ..errors import InputError
from .difference_tables import accuracies_table, differences_table
from .options import DebugOpt, JsonOpt, WorkloadArg

if TYPE_CHECKING:
    from rich.console import Console

    from ..merging.analysis.analysis import Analysis, ModelSizes
    from ..merging.layers.layers import Definition
    from ..merging.search.measure_forms import KeptAccuracy
    from ..workload import Workload

__all__ = ["analyze_command"]

_ROWS = 20
"""Maximum number of groups of layers that the table of ``gemel analyze`` lists one by one; its last row sums up the
rest."""


def analyze_command(
    workload: WorkloadArg,
    json_file: JsonOpt = None,
    html: Annotated[
        Path | None, typer.Option(help="Write the analysis as one HTML page to this file.", metavar="FILE")
    ] = None,
    definition: Annotated[
        str,
        typer.Option(
            help="Layers that may share: equal in kind, weight shape and groups (shape), or in every setting (strict).",
            metavar="shape|strict",
        ),
    ] = "shape",
    heads: Annotated[
        bool, typer.Option("--heads", help="Count the layers of a model's outputs too, which merging keeps private.")
    ] = False,
    accuracy: Annotated[
        bool,
        typer.Option(
            "--accuracy", help="Measure what accuracy is kept without training if weights have few bits. Needs data."
        ),
    ] = False,
    device: Annotated[str, typer.Option(help="Device to measure accuracy on: auto, cpu or cuda.")] = "auto",
    debug: DebugOpt = False,
) -> None:
    """Show which layers the models of a workload could share, and what that would save. Needs neither data nor a GPU.

    [dim]gemel analyze examples/street/workload.yaml --html analysis.html[/dim]
    """
    for path in (json_file, html):
        check_writable(path)
    try:
        from ..merging.analysis.analysis import analyze_workload as analyze_workload
        from ..merging.analysis.difference_table import Kernels, analyze_differences
        from ..merging.layers.layers import Definition as Definitions
        from ..workload import load_workload
        from ..workload.models.identity import models_of

        if html is not None:
            from ..merging.analysis.page import render
    except ModuleNotFoundError as error:
        raise missing_extra(error, "gemel analyze", "merge") from error
    if definition not in get_args(Definitions):
        raise InputError(f"--definition: {definition!r} is not allowed: {' or '.join(get_args(Definitions))}")

    console, began = open_console(), perf_counter()

    loaded = load_workload(workload)
    with progress_bar(console, len(set(models_of(loaded).values()))) as bar:

        def step(model: ModelSizes) -> None:
            what = f"{model.name}: {len(model.layers)} layers, {_mb(model.bytes)} MB"
            if model.kept_as_is is not None:
                what += f"; from the ONNX graph, as merging leaves it as it is: {model.kept_as_is}"
            print_stage(console, "layers", what, began=began)
            bar.advance(bar.task_ids[0])

        found = analyze_workload(loaded, cast("Definition", definition), heads, step, kernels := Kernels())
    families = analyze_differences(loaded, found, kernels)
    for name, reason in found.left_out.items():
        print_stage(console, "left out", f"{name}: {reason}", began=began)
    if found.groups:
        console.print(_groups(found))
    for line in _totals(found):
        console.print(line, soft_wrap=True)
    for family in families:
        print_stage(console, "family", family.fine_tunes.description, began=began)
        console.print(differences_table(family))
    kept = list(_accuracies(loaded, cast("Definition", definition), device, console, began)) if accuracy else []
    if kept:
        console.print(accuracies_table(kept))
    if json_file is not None:
        content = {
            **found.to_json(),
            "fine_tunes": [family.to_json() for family in families],
            "accuracies": [asdict(each) for each in kept],
        }
        write_json(json_file, content)
        print_stage(console, "json", f"{json_file}, {json_file.stat().st_size / 1e3:.0f} kB", began=began)
    if html is not None:
        html.write_text(render(found, str(workload)), encoding="utf-8")
        print_stage(console, "page", f"{html}, {html.stat().st_size / 1e3:.0f} kB", began=began)
    console.print(f"Next: gemel merge {workload} -o merged/", soft_wrap=True)


def _accuracies(
    workload: Workload, definition: Definition, device: str, console: Console, began: float
) -> Iterator[KeptAccuracy]:
    """Load data and models, and yield the accuracies that models keep with weights of few bits."""
    from ..merging.merge import device_of
    from ..merging.search.find_forms import find_forms
    from ..merging.search.measure_forms import measure_forms
    from ..merging.training.loading import build_subjects

    def left_out(model: str, error: Exception) -> None:
        print_stage(console, "left out", f"{model}: {error}", began=began)

    subjects = build_subjects(workload, definition, device_of(device), left_out=left_out)
    yield from measure_forms(subjects, find_forms(workload, subjects))


def _groups(found: Analysis) -> Table:
    table = Table(title="groups: layers that could hold the same weights", title_justify="left", box=SIMPLE)
    table.add_column("definition")
    for column in ("layers", "models", "MB each", "saving MB", "saving inside MB"):
        table.add_column(column, justify="right")
    for group in found.groups[:_ROWS]:
        sizes = (_mb(group.bytes), _mb(group.saving), _mb(group.saving_inside))
        table.add_row(escape(group.definition), str(len(group.layers)), str(len(group.counts)), *sizes)
    if more := found.groups[_ROWS:]:
        saving, inside = sum(group.saving for group in more), sum(group.saving_inside for group in more)
        table.add_row(f"{len(more)} more", "", "", "", _mb(saving), _mb(inside))
    return table


def _totals(found: Analysis) -> list[str]:
    return [
        f"weights: {_mb(found.query_bytes)} MB as one session per query, {_mb(found.bytes)} MB as one per model; the"
        f" heaviest 15% of the layers hold {found.heaviest(0.15):.0%} of the layers' memory",
        f"pairs of models that share: {found.sharing_pairs} of {len(found.pairs)}",
        f"potential: {found.potential:.1%} ({_mb(found.potential_bytes)} MB) between models,"
        f" {found.potential_inside:.1%} ({_mb(found.potential_inside_bytes)} MB) and inside them",
    ]


def _mb(size: int) -> str:
    return f"{size / 1e6:.2f}"
