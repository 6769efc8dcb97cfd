"""What the commands' flags have in common."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InputError

if TYPE_CHECKING:
    from ..runtime.memory.arena import Loading

__all__ = [
    "BackendOpt",
    "BandwidthOpt",
    "BundleArg",
    "ColdOpt",
    "DebugOpt",
    "JsonOpt",
    "MemoryOpt",
    "ThreadsOpt",
    "WorkloadArg",
    "loading_of",
    "memory_of",
]

BundleArg = Annotated[Path, typer.Argument(help="Folder that gemel-compile wrote.", metavar="BUNDLE")]
WorkloadArg = Annotated[Path, typer.Argument(help="The workload file.", metavar="WORKLOAD.YAML")]
JsonOpt = Annotated[Path | None, typer.Option("--json", help="Write it as JSON to this file.", metavar="FILE")]
BackendOpt = Annotated[str | None, typer.Option(help="Left out, the workload's.", metavar="NAME")]
MemoryOpt = Annotated[str | None, typer.Option(help="Budget for weights: 64MiB, 50%, min or all.", metavar="SIZE")]
ThreadsOpt = Annotated[
    int | None, typer.Option(help="Threads of a run; left out, one less than the cores.", min=1, metavar="N")
]
DebugOpt = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
ColdOpt = Annotated[bool, typer.Option("--cold", help="Weights that are evicted leave the page cache, too.")]
BandwidthOpt = Annotated[
    str | None, typer.Option(help="Load weights no faster than this a second: 200MB.", metavar="SIZE")
]


def loading_of(cold: bool, bandwidth: str | None) -> Loading:
    """How weights come into memory, as the flags have it.

    Raises:
        InputError: the bandwidth is not a number of bytes.
    """
    from ..bundles.budget import parse_memory
    from ..runtime.memory.arena import Loading

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
    """A memory setting, as a flag has it.

    Raises:
        InputError: it is not one.
    """
    from ..bundles.budget import parse_memory

    try:
        return None if text is None else parse_memory(text)
    except ValueError as error:
        raise InputError(f"--memory: {text!r} is not allowed: {error}") from error
