"""What the commands' flags have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["BundleArg", "DebugOpt", "JsonOpt", "ThreadsOpt", "WorkloadArg"]

BundleArg = Annotated[Path, typer.Argument(help="Folder that gemel-compile wrote.", metavar="BUNDLE")]
WorkloadArg = Annotated[Path, typer.Argument(help="The workload file.", metavar="WORKLOAD.YAML")]
JsonOpt = Annotated[Path | None, typer.Option("--json", help="Write it as JSON to this file.", metavar="FILE")]
ThreadsOpt = Annotated[
    int | None, typer.Option(help="Threads of a run; left out, one less than the cores.", min=1, metavar="N")
]
DebugOpt = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
