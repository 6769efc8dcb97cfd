"""What the commands share: where they print, progress, and the files and pairs that their flags name."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from threading import Event
from time import perf_counter
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .errors import InputError, MissingExtraError, first_line

__all__ = [
    "Stop",
    "check_writable",
    "missing_extra",
    "open_console",
    "parse_pair",
    "print_error",
    "print_failures",
    "print_stage",
    "progress_bar",
    "write_json",
]


def open_console() -> Console:
    """A pipe has no width: tables are then as wide as they need."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=200)


def missing_extra(error: ModuleNotFoundError, what: str, extra: str) -> Exception:
    """A package of an extra that is not installed; anything of our own that is missing is a bug and stays one."""
    return error if (error.name or "").startswith("gemel") else MissingExtraError(what, extra)


def print_stage(
    console: Console, name: str, what: str, *, began: float | None = None, passed: bool | None = None
) -> None:
    """One line on what a stage of the work did.

    Args:
        console: where to.
        name: of the stage.
        what: it did; printed as it is.
        began: of ``time.perf_counter``: the seconds since then stand before ``what``.
        passed: of a check: what came of it stands at the end.
    """
    took = "" if began is None else f"{perf_counter() - began:6.1f} s  "
    verdict = "" if passed is None else " [green]ok[/]" if passed else " [red]differs[/]"
    console.print(f"[bold]{name:>8}[/]  {took}{escape(what)}{verdict}", soft_wrap=True)


def progress_bar(console: Console, total: int) -> Progress:
    """A bar over ``total`` models, with one task; it shows nothing where output is piped."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    bar.add_task("models", total=total)
    return bar


class Stop:
    """While it is entered, Ctrl-C and a service manager's stop set ``event`` once; the next one kills the process."""

    def __init__(self) -> None:
        self.event = Event()
        self.exit_code = 0
        """What a command that was stopped before it did anything exits with, as shells have it."""
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        self._previous = {number: signal.signal(number, self._on) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Called between steps of a work that does not look at ``event``.

        Raises:
            KeyboardInterrupt: it was set.
        """
        if self.event.is_set():
            raise KeyboardInterrupt

    def _on(self, number: int, _: object) -> None:
        self.exit_code = 128 + number
        self.event.set()
        for each in self._previous:
            signal.signal(each, signal.SIG_DFL)


def parse_pair(item: str) -> tuple[str, str]:
    """``NAME=SOURCE`` taken apart.

    >>> pair("gate=rtsp://host/1?a=b")
    ('gate', 'rtsp://host/1?a=b')

    Raises:
        InputError: one of the two is missing.
    """
    name, separator, source = item.partition("=")
    if not separator or not name or not source:
        raise InputError(f"--feed: {item!r} is not allowed: NAME=SOURCE is expected")
    return name, source


def print_error(error: Exception) -> None:
    """One line on stderr."""
    text = str(error)
    if isinstance(error, OSError):
        text = (f"{error.filename}: " if error.filename else "") + (error.strerror or first_line(error))
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"[red]error:[/] {escape(text)}")


def print_failures(console: Console, reasons: Mapping[str, str]) -> None:
    """What failed and why, all on one line, which is the last one that a command prints."""
    what = "; ".join(f"{name}: {' '.join(reason.split())}" for name, reason in reasons.items())
    console.print(f"[red]failed:[/] {escape(what)}", soft_wrap=True)


def check_writable(path: Path | None) -> None:
    """Make the folder of a file that is to be written and try to open it: before the work, not after it.

    Raises:
        InputError: it cannot be written.
    """
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        existed = os.path.lexists(path)
        # A pipe or a device may not be opened twice.
        if not existed or path.is_file() or path.is_dir():
            path.open("ab").close()
        if not existed:
            path.unlink()
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error


def write_json(path: Path | None, value: Any) -> None:
    """Write a value as indented JSON; nothing where no path was asked for.

    Raises:
        InputError: the file cannot be written.
    """
    if path is None:
        return
    check_writable(path)
    try:
        path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error
