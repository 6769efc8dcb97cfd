"""Command ``gemel init``: write a commented workload file for given models and cameras."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from ..console import check_writable, missing_extra, open_console, print_stage
from ..errors import InputError
from .options import DebugOpt

__all__ = ["init_command"]


def init_command(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            help="ONNX files, factories (module:name), weights after their factory, videos, image folders, cameras.",
            metavar="[FILES]...",
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Workload file to write.", metavar="WORKLOAD.YAML")
    ] = Path("workload.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite the workload file if there is one.")] = False,
    debug: DebugOpt = False,
) -> None:
    """Write a commented workload file, with task, labels and input filled in as far as the models' files tell them.

    [dim]gemel init yolo11n.onnx cars.mp4 -o workload.yaml[/dim]
    """
    try:
        from ..compiler.drafting.draft import draft_workload
        from ..compiler.drafting.given import sort_given
        from ..workload.document.json_schema import SCHEMA_FILE, workload_schema
        from ..workload.document.load import load_workload
    except ModuleNotFoundError as error:
        raise missing_extra(error, "gemel init", "compiler") from error
    if output.exists() and not (force and output.is_file()):
        raise InputError(f"{output}: exists already; --force overwrites it, -o writes another file")
    models, feeds = sort_given(files or [])
    text = draft_workload(models, feeds, output.parent)
    schema = output.parent / SCHEMA_FILE
    check_writable(output)
    # Check that the draft can be read, before it replaces an older file.
    draft = output.with_name(f".{output.name}.new")
    try:
        draft.write_text(text, encoding="utf-8")
        loaded = load_workload(draft)
        draft.replace(output)
    finally:
        draft.unlink(missing_ok=True)
    wrote_schema = not schema.exists()
    if wrote_schema:
        schema.write_text(workload_schema(), encoding="utf-8")
    console = open_console()
    for model in models:
        if model.facts is not None and model.facts.refusal is not None:
            print_stage(console, "refused", f"gemel-compile will not take {model.reference}: {model.facts.refusal}")
    for query in loaded.queries:
        what = f"{query.name}: {query.task}, {query.model.onnx or query.model.factory} on {query.feed}"
        print_stage(console, "query", what)
    if wrote_schema:
        print_stage(console, "schema", f"{schema}, for editors")
    print_stage(console, "workload", f"{output}: check the comments; docs/workload.md has every key")
    console.print(escape(f"Next: gemel-compile {output} -o bundle/"), soft_wrap=True)
