"""What the commands share: where they print, progress, and the files and pairs that their flags name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .errors import InputError, MissingExtraError

__all__ = ["check_writable", "missing_extra", "open_console", "pair", "progress_bar", "write_json"]


def open_console() -> Console:
    """A pipe has no width: tables are then as wide as they need."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=200)


def missing_extra(error: ModuleNotFoundError, what: str, extra: str) -> Exception:
    """A package of an extra that is not installed; anything of our own that is missing is a bug and stays one."""
    return error if (error.name or "").startswith("gemel") else MissingExtraError(what, extra)


def progress_bar(console: Console, total: int) -> Progress:
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


def pair(item: str) -> tuple[str, str]:
    name, separator, source = item.partition("=")
    if not separator or not name or not source:
        raise InputError(f"--feed: {item!r} is not allowed: NAME=SOURCE is expected")
    return name, source


def check_writable(path: Path | None) -> None:
    if path is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{path}: cannot be written: {error.strerror}") from error


def write_json(path: Path | None, value: Any) -> None:
    if path is None:
        return
    check_writable(path)
    try:
        path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error
