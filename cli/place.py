"""Command ``gemel place``: decide which query runs on which box, so that boxes hold what shares most."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..console import check_writable, open_console, print_stage, write_json
from ..errors import InputError
from .file_kinds import require_bundle, require_profile
from .options import DebugOpt

if TYPE_CHECKING:
    from ..bundles.reader import Bundle

__all__ = ["LEFT_OUT_EXIT", "place_command"]

LEFT_OUT_EXIT = 3
"""Exit status if a query was left out; 1 and 2 are errors, as for every command."""


class _Rate(str, Enum):
    """Frames per second that count for the load."""

    feed = "feed"
    least = "min"


def place_command(
    bundles: Annotated[list[Path], typer.Argument(help="Folders that gemel-compile wrote.", metavar="BUNDLE...")],
    boxes: Annotated[
        Path, typer.Option(help="File of boxes: memory, speed, feeds that stay there.", metavar="BOXES.YAML")
    ],
    profile: Annotated[
        list[Path] | None,
        typer.Option(help="Profile with run times; may be given more than once.", metavar="PROFILE.YAML"),
    ] = None,
    memory_only: Annotated[
        bool, typer.Option("--memory-only", help="Ignore how long models run: only memory counts.")
    ] = False,
    rate: Annotated[
        _Rate, typer.Option(help="Frames that must be answered: all of the feed, or min_fps where there is one.")
    ] = _Rate.feed,
    seconds: Annotated[
        float, typer.Option(help="Seconds after which the best placement so far is taken.", min=0.1)
    ] = 10.0,
    exact: Annotated[
        bool | None,
        typer.Option(
            "--exact/--heuristic", help="Use the exact solver, or not. Default: if it is installed and the case small."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write the placement as JSON to this file.", metavar="FILE")
    ] = None,
    split: Annotated[
        Path | None,
        typer.Option(help="Write one bundle for each box into this folder, named after the box.", metavar="DIR"),
    ] = None,
    debug: DebugOpt = False,
) -> None:
    """Decide which query runs on which box, so that boxes hold what shares most.

    As many queries as possible are placed, by priority and weight; then all boxes together take as little
    memory as possible. The exit status is 3 if a query is left out.

    [dim]gemel place street/ yard/ --boxes boxes.yaml --profile profile.yaml -o plan.json[/dim]
    """
    from ..bundles.reader import open_bundle
    from ..fleet.boxes_file import read_boxes
    from ..fleet.bundle_needs import case_of, check_bundles, loads_of, seen_feeds
    from ..fleet.place_queries import place_queries
    from ..fleet.placement_report import placement_lines, placement_table, placement_to_json
    from ..fleet.split_bundles import check_split, split_bundles
    from ..runtime.planning.read import read_profile

    if memory_only and (profile or rate is not _Rate.feed):
        raise InputError("--memory-only: run times do not count; leave out --profile and --rate")
    check_writable(output)
    opened = [open_bundle(require_bundle(path)) for path in bundles]
    check_bundles(opened)
    listed = read_boxes(boxes, seen_feeds(opened))
    profiles = [read_profile(require_profile(path)) for path in profile or ()]
    loads = {} if memory_only else loads_of(opened, profiles, rate.value)
    case = case_of(opened, listed, loads)
    if split is not None:
        check_split(split, opened, listed)
    console = open_console()
    placement = place_queries(case, seconds, exact=exact)
    console.print(placement_table(case, placement))
    for line in placement_lines(case, placement):
        console.print(line, soft_wrap=True, markup=False)
    feeds = [query.feed for bundle in opened for query in bundle.manifest.queries.values()]
    if output is not None:
        write_json(output, placement_to_json(case, placement, feeds))
        print_stage(console, "json", str(output))
    members = case.members(placement.assignment)
    names = [[case.queries[query].name for query in queries] for queries in members]
    if split is not None:
        for bundle in split_bundles(split, opened, listed, names):
            print_stage(console, "bundle", _split_line(bundle))
        for bundle in opened:
            known = bundle.manifest.originals
            if known is not None and known.at is not None:
                console.print(
                    f"{bundle.path}: its original weights are elsewhere, for this bundle only: gemel revert cannot"
                    " fetch them for the new ones; compile with --originals, without --originals-at",
                    soft_wrap=True,
                    markup=False,
                )
    if sum(map(len, names)) < len(case.queries):
        raise typer.Exit(LEFT_OUT_EXIT)


def _split_line(bundle: Bundle) -> str:
    """Return what a line says about the bundle of a box."""
    from ..bundles.originals import originals_bytes
    from ..check.contents.original_figures import unique_bytes

    content = bundle.manifest
    text = f"{bundle.path}: {unique_bytes(content) / 1e6:.2f} MB, {len(content.queries)} queries"
    waiting = originals_bytes(content)
    return f"{text}; {waiting / 1e6:.2f} MB more for gemel revert, not loaded" if waiting else text
