"""Write files whole or not at all, and explain what a disk refuses."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...errors import InputError

__all__ = ["explain_disk_errors", "write_atomically"]


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: write it under another name, sync it to the disk, then rename it."""
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def explain_disk_errors(output: Path) -> Iterator[None]:
    """Turn an OSError in a ``with`` block into an InputError that says how to go on."""
    try:
        yield
    except OSError as error:
        reason = f"{error.filename or output}: cannot be written: {error.strerror}"
        raise InputError(f"{reason}; the last commit is whole, --resume goes on from it") from error
