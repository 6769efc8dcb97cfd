"""The commands: ``gemel``, and ``gemel-compile`` and ``gemel-run`` as short names for two of its own.

Each command imports what it needs when it runs, so that ``gemel-run`` works where only the light runtime is installed.
"""

from __future__ import annotations

import sys
from typing import Any

import typer

from ..console import print_error
from ..errors import GemelError
from .analyze import analyze
from .bundle import bench, check, inspect
from .compile import compile_
from .eval import evaluate
from .merge import merge
from .profile import profile
from .run import run
from .simulate import simulate

__all__ = ["app", "compile_main", "main", "run_main"]

_OPTIONS: dict[str, Any] = {
    "pretty_exceptions_enable": False,
    "add_completion": False,
    "rich_markup_mode": "rich",
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
app = typer.Typer(
    name="gemel",
    help="Many vision models in the memory of a few: merge, compile, run.",
    no_args_is_help=True,
    **_OPTIONS,
)

app.command()(analyze)
app.command()(merge)
app.command("compile")(compile_)
for _command in (run, inspect, check, bench, profile, simulate):
    app.command()(_command)
app.command("eval")(evaluate)


def main() -> None:
    """Entry point of ``gemel``."""
    _guarded(app)


def compile_main() -> None:
    """Entry point of ``gemel-compile``."""
    single = typer.Typer(**_OPTIONS)
    single.command()(compile_)
    _guarded(single)


def run_main() -> None:
    """Entry point of ``gemel-run``."""
    single = typer.Typer(**_OPTIONS)
    single.command()(run)
    _guarded(single)


def _guarded(command: typer.Typer) -> None:
    try:
        command()
    except (GemelError, OSError) as error:
        if "--debug" in sys.argv:
            raise
        print_error(error)
        sys.exit(getattr(error, "exit_code", 1))
