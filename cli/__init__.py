"""Command line: ``gemel`` with its subcommands, and ``gemel-compile`` and ``gemel-run`` as short names of two of them.

Each command imports what it needs when it runs. ``gemel-run`` therefore works with only the light runtime installed,
and ``--help`` loads none of PyTorch, ONNX and ONNX Runtime.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import Any

import typer

from ..console import print_error
from ..errors import GemelError
from ..streams import forgiving_output
from .analyze import analyze_command
from .apply import apply_command
from .bench import bench_command
from .check import check_command
from .compile import compile_command
from .diff import diff_command
from .drift import drift_command
from .eval import eval_command
from .init import init_command
from .inspect import inspect_command
from .merge import merge_command
from .options import VersionOpt
from .place import place_command
from .profile import profile_command
from .pull import pull_command
from .remote import pause_command, reload_command, resume_command, status_command
from .revert import revert_command
from .run import run_command
from .simulate import simulate_command

__all__ = ["app", "compile_main", "main", "run_main"]

_OPTIONS: dict[str, Any] = {
    "pretty_exceptions_enable": False,
    "rich_markup_mode": "rich",
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
app = typer.Typer(
    name="gemel",
    help="Merge, compile and run many vision models in the memory of a few.",
    no_args_is_help=True,
    **_OPTIONS,
)

_COMMANDS: dict[str, Callable[..., None]] = {
    "init": init_command,
    "analyze": analyze_command,
    "merge": merge_command,
    "compile": compile_command,
    "run": run_command,
    "diff": diff_command,
    "apply": apply_command,
    "pull": pull_command,
    "revert": revert_command,
    "status": status_command,
    "reload": reload_command,
    "pause": pause_command,
    "resume": resume_command,
    "inspect": inspect_command,
    "check": check_command,
    "bench": bench_command,
    "eval": eval_command,
    "drift": drift_command,
    "profile": profile_command,
    "simulate": simulate_command,
    "place": place_command,
}
for _name, _command in _COMMANDS.items():
    app.command(_name)(_command)


@app.callback()
def _gemel(version: VersionOpt = False) -> None:
    """Accept flags that come before the name of a ``gemel`` subcommand."""


def main() -> None:
    """Run the command ``gemel``, and exit with its status."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in _COMMANDS:
        # Typer would first read the signatures of all commands, which takes longer than to print the help of one.
        _run_alone(_COMMANDS[name], prog_name=f"gemel {name}", args=sys.argv[2:])
    else:
        _run(app)


def compile_main() -> None:
    """Run the command ``gemel-compile``, and exit with its status."""
    _run_alone(compile_command)


def run_main() -> None:
    """Run the command ``gemel-run``, and exit with its status."""
    _run_alone(run_command)


def _run_alone(command: Callable[..., None], **given: Any) -> None:
    """Run one command that is no part of ``gemel``'s group; ``given`` are arguments of Click's ``main``."""
    alone = typer.Typer(add_completion=False, **_OPTIONS)
    alone.command()(command)
    _run(alone, **given)


def _run(commands: typer.Typer, **given: Any) -> None:
    """Run a command; print an expected error as one line, unless ``--debug`` asks for the traceback.

    Args:
        commands: command to run, or group of commands.
        given: arguments of Click's ``main``; those of the process if left out.
    """
    try:
        with forgiving_output():
            commands(**given)
    except (GemelError, OSError) as error:
        if "--debug" in sys.argv:
            raise
        with contextlib.suppress(OSError):
            print_error(error)
        sys.exit(getattr(error, "exit_code", 1))
