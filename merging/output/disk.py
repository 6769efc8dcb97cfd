"""Explain what a disk refuses while a merge is written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...errors import InputError

__all__ = ["explain_disk_errors"]


@contextmanager
def explain_disk_errors(output: Path) -> Iterator[None]:
    """Turn an OSError in a ``with`` block into an InputError that says how to go on."""
    try:
        yield
    except OSError as error:
        reason = f"{error.filename or output}: cannot be written: {error.strerror}"
        raise InputError(f"{reason}; the last commit is whole, --resume goes on from it") from error
