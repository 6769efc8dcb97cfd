"""The commands: ``gemel``, and ``gemel-compile`` and ``gemel-run`` as short names for two of its own.

Each command imports what it needs when it runs, so that ``gemel-run`` works where only the light runtime is installed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import typer

from ..console import print_error
from ..errors import GemelError
from .analyze import analyze_command
from .bundle import bench_command, check_command, inspect_command
from .compile import compile_command
from .eval import eval_command
from .merge import merge_command
from .profile import profile_command
from .run import run_command
from .simulate import simulate_command

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

_COMMANDS: dict[str, Callable[..., None]] = {
    "analyze": analyze_command,
    "merge": merge_command,
    "compile": compile_command,
    "run": run_command,
    "inspect": inspect_command,
    "check": check_command,
    "bench": bench_command,
    "eval": eval_command,
    "profile": profile_command,
    "simulate": simulate_command,
}
for _name, _command in _COMMANDS.items():
    app.command(_name)(_command)


def main() -> None:
    """Entry point of ``gemel``."""
    _guarded(app)


def compile_main() -> None:
    """Entry point of ``gemel-compile``."""
    single = typer.Typer(**_OPTIONS)
    single.command()(compile_command)
    _guarded(single)


def run_main() -> None:
    """Entry point of ``gemel-run``."""
    single = typer.Typer(**_OPTIONS)
    single.command()(run_command)
    _guarded(single)


def _guarded(command: typer.Typer) -> None:
    try:
        command()
    except (GemelError, OSError) as error:
        if "--debug" in sys.argv:
            raise
        print_error(error)
        sys.exit(getattr(error, "exit_code", 1))
