"""Helpers of the command line tools: console output, progress bars, signals, checks of flags and output files."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Mapping
from pathlib import Path
from threading import Event
from time import perf_counter
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from .errors import InputError, MissingExtraError, first_line

if TYPE_CHECKING:
    from rich.progress import Progress

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


def open_console(*, stderr: bool = False) -> Console:
    """Return a console for stdout, or for stderr. Output to a pipe is 200 columns wide, so that tables are not cut off.

    Args:
        stderr: whether to print to stderr, because stdout takes the command's results.
    """
    console = Console(highlight=False, stderr=stderr)
    return console if console.is_terminal else Console(highlight=False, width=200, stderr=stderr)


def missing_extra(error: ModuleNotFoundError, what: str, extra: str) -> Exception:
    """Return the error to raise for a failed import: a MissingExtraError, or ``error`` itself for gemel's own modules.

    A missing module of gemel itself is a bug, which installing an extra would not fix.

    Args:
        error: error that the failed import raised.
        what: command or feature of gemel that needs the module.
        extra: name of the extra that installs the module.
    """
    return error if (error.name or "").startswith("gemel") else MissingExtraError(what, extra)


def print_stage(
    console: Console, name: str, what: str, *, began: float | None = None, passed: bool | None = None
) -> None:
    """Print one line about a finished stage of a command.

    Args:
        console: console to print to.
        name: name of the stage of the command.
        what: description of what the stage did; printed literally, without markup.
        began: start of the stage in seconds of ``time.perf_counter``; if given, the duration is printed.
        passed: result of a check; if given, ``ok`` or ``differs`` is printed at the end.
    """
    took = "" if began is None else f"{perf_counter() - began:6.1f} s  "
    verdict = "" if passed is None else " [green]ok[/]" if passed else " [red]differs[/]"
    console.print(f"[bold]{name:>8}[/]  {took}{escape(what)}{verdict}", soft_wrap=True)


def progress_bar(console: Console, total: int) -> Progress:
    """Return a progress bar with one task of ``total`` steps. The bar shows nothing if output goes to a pipe."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

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
    """Context manager for a graceful stop: a first signal sets ``event``, a second one kills.

    The signals are SIGINT (Ctrl-C), SIGTERM, and SIGHUP (the terminal is closed) unless the process was started to
    ignore it, as ``nohup`` does.

    Args:
        reloads: whether SIGHUP asks for a reload if the process has no terminal, as is usual for services.
    """

    def __init__(self, *, reloads: bool = False) -> None:
        self.event = Event()
        """Event that is set when the first signal arrives."""
        self.reload = Event()
        """Event that is set when SIGHUP asks for a reload."""
        self._reloads = reloads and not _has_terminal()
        self.exit_code = 0
        """Exit status of a command that a signal stopped: 128 plus the signal's number, as in shells."""
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        self._previous = {number: signal.signal(number, self._on) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise an exception if a signal has arrived. Call between steps of work that does not look at ``event``.

        Raises:
            KeyboardInterrupt: a signal has arrived.
        """
        if self.event.is_set():
            raise KeyboardInterrupt

    def _on(self, number: int, _: object) -> None:
        """Handle the first signal: set the event and the exit status, and restore the default handlers for the next."""
        if number == signal.SIGHUP and self._reloads:
            self.reload.set()
            return
        self.exit_code = 128 + number
        self.event.set()
        for each in self._previous:
            signal.signal(each, signal.SIG_DFL)


def _has_terminal() -> bool:
    """Return whether the process has a terminal, which would send SIGHUP when it is closed."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def parse_pair(item: str) -> tuple[str, str]:
    """Split the argument ``NAME=SOURCE`` of ``--feed`` at the first ``=`` into name and source.

    >>> parse_pair("gate=rtsp://host/1?a=b")
    ('gate', 'rtsp://host/1?a=b')

    Raises:
        InputError: the name or the source is missing.
    """
    name, separator, source = item.partition("=")
    if not separator or not name or not source:
        # The item may be an address with a password.
        shown = repr(item) if re.fullmatch(r"[\w .=-]{1,64}", item) else "the address"
        raise InputError(f"--feed: {shown} is not allowed: NAME=SOURCE is expected")
    return name, source


def print_error(error: Exception) -> None:
    """Print an error as one line on stderr."""
    text = str(error)
    if isinstance(error, OSError):
        text = (f"{error.filename}: " if error.filename else "") + (error.strerror or first_line(error))
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"[red]error:[/] {escape(text)}")


def print_failures(console: Console, reasons: Mapping[str, str]) -> None:
    """Print one line that names everything that failed and why, as the last output of a command.

    Args:
        console: console to print to.
        reasons: name of each item that failed -> reason.
    """
    what = "; ".join(f"{name}: {' '.join(reason.split())}" for name, reason in reasons.items())
    console.print(f"[red]failed:[/] {escape(what)}", soft_wrap=True)


def check_writable(path: Path | None) -> None:
    """Check that a result file can be written, before the work is done. Create the file's folder if it is missing.

    Args:
        path: path of the file; None to check nothing.

    Raises:
        InputError: the file cannot be written.
    """
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        existed = os.path.lexists(path)
        # Do not open pipes and devices here: some can be opened only once.
        if not existed or path.is_file() or path.is_dir():
            path.open("ab").close()
        if not existed:
            path.unlink()
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error


def write_json(path: Path | None, value: Any) -> None:
    """Write a value to a file as indented JSON.

    Args:
        path: path of the file; None to write nothing.
        value: value that ``json.dumps`` accepts.

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
