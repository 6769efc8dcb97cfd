"""Lock for a folder that only one process at a time may write."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...errors import InputError

__all__ = ["locked"]


@contextmanager
def locked(path: Path, refusal: str) -> Iterator[None]:
    """Hold a lock on a file for the duration of a ``with`` block.

    The operating system releases the lock when the process ends, even if it is killed. The file is not deleted, because
    another process may just have opened it. Systems without ``fcntl`` and some network drives have no such locks. On
    these, the block runs without a lock.

    Args:
        path: the lock file; it and its folder are created if missing.
        refusal: message of the error if another process holds the lock.

    Raises:
        InputError: another process holds the lock.
        OSError: the lock file cannot be written.
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
