"""A folder that only one process at a time may write."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...errors import InputError

__all__ = ["locked"]


@contextmanager
def locked(path: Path, refusal: str) -> Iterator[None]:
    """Hold a lock while it is entered. The system releases it when the process ends, however it ends.

    The file stays: to delete it could take it from under a process that has just opened it. Where there are no such
    locks, on other systems and on some network drives, nothing is held.

    Args:
        path: of the file that stands for the lock; it and its folder are made.
        refusal: what is said where another holds it.

    Raises:
        InputError: another holds it.
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(refusal) from error
        except (ImportError, OSError):
            pass
        yield
