"""Arguments and flags that several ``gemel`` commands share."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InputError
from .file_kinds import require_bundle

if TYPE_CHECKING:
    from ..bundles.staleness import Staleness
    from ..runtime.memory.loading import Loading

__all__ = [
    "BackendOpt",
    "BandwidthOpt",
    "BundleArg",
    "ColdOpt",
    "DebugOpt",
    "JsonOpt",
    "MemoryOpt",
    "ObjectiveOpt",
    "StalenessOpt",
    "ThreadsOpt",
    "VersionOpt",
    "WorkloadArg",
    "curves_of",
    "loading_of",
    "memory_of",
]


def _print_version(wanted: bool) -> None:
    if wanted:
        from ..version import find_version

        print(f"gemel {find_version()}")
        raise typer.Exit


BundleArg = Annotated[
    Path, typer.Argument(help="Folder that gemel-compile wrote.", metavar="BUNDLE", callback=require_bundle)
]
WorkloadArg = Annotated[Path, typer.Argument(help="Workload file.", metavar="WORKLOAD.YAML")]
JsonOpt = Annotated[Path | None, typer.Option("--json", help="Write the result as JSON to this file.", metavar="FILE")]
BackendOpt = Annotated[
    str | None,
    typer.Option(
        help="Backend to run on: ort-cpu, auto-cpu, openvino, openvino-fast, ort-cuda, tensorrt or tensorrt-rtx."
        " Default: the workload's.",
        metavar="NAME",
    ),
]
MemoryOpt = Annotated[
    str | None,
    typer.Option(help="Budget for weights: 64MiB, 50%, min or all. Default: the workload's.", metavar="SIZE"),
]
ThreadsOpt = Annotated[
    int | None,
    typer.Option(help="Threads that one run may use. Default: one less than the cores.", min=1, metavar="N"),
]
ObjectiveOpt = Annotated[
    str | None,
    typer.Option(
        help="What plans serve: max-min, sum, accuracy or mean-accuracy. Default: the workload's.", metavar="NAME"
    ),
]
StalenessOpt = Annotated[
    Path | None,
    typer.Option(
        help="File of staleness curves that gemel eval --staleness wrote, for objectives about accuracy. Default: the"
        " workload's.",
        metavar="FILE",
    ),
]
DebugOpt = Annotated[bool, typer.Option("--debug", help="Print the traceback of an error.")]
ColdOpt = Annotated[
    bool, typer.Option("--cold", help="Drop evicted weights from the page cache, so that they load from disk again.")
]
BandwidthOpt = Annotated[
    str | None,
    typer.Option(help="Load weights no faster than this per second: 200MB. Default: no limit.", metavar="SIZE"),
]
VersionOpt = Annotated[
    bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
]


def curves_of(path: Path | None, queries: Collection[str]) -> dict[str, Staleness]:
    """Return the staleness curves in the file of the flag ``--staleness``; none if the flag was not given.

    Args:
        path: path of the file.
        queries: names of the queries that exist.

    Raises:
        InputError: the file is no file of curves, or has a curve of a query that does not exist.
    """
    from ..bundles.staleness import check_curves, read_curves

    if path is None:
        return {}
    curves = read_curves(path)
    check_curves(curves, queries, str(path))
    return curves


def loading_of(cold: bool, bandwidth: str | None) -> Loading:
    """Return how weights are loaded, according to the flags ``--cold`` and ``--bandwidth``.

    Raises:
        InputError: the bandwidth is not a number of bytes above 0.
    """
    from ..bundles.budget import parse_memory
    from ..runtime.memory.loading import Loading

    if bandwidth is None:
        return Loading(cold)
    try:
        size = parse_memory(bandwidth)
    except ValueError:
        size = 0
    if not isinstance(size, int) or size < 1:
        raise InputError(f"--bandwidth: {bandwidth!r} is not allowed: bytes a second such as 200MB are expected")
    return Loading(cold, float(size))


def memory_of(text: str | None) -> str | int | None:
    """Return the memory setting of the flag ``--memory``; None if the flag was not given.

    Raises:
        InputError: ``text`` is no memory setting.
    """
    from ..bundles.budget import parse_memory

    try:
        return None if text is None else parse_memory(text)
    except ValueError as error:
        raise InputError(f"--memory: {text!r} is not allowed: {error}") from error
