"""Locks on files and folders, which the system releases when their process ends, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["abandoned", "lock_at", "try_lock"]


def try_lock(descriptor: int) -> bool:
    """Lock an open file or folder; return False if another process holds the lock. Without locks, return True."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # Some network file systems have no locks; there, leftovers stay.
        return True
    return True


def lock_at(descriptor: int, path: Path) -> bool:
    """Lock an open file or folder; return False if another process holds the lock, or has removed or replaced it."""
    if not try_lock(descriptor):
        return False
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def abandoned(path: Path) -> Iterator[bool]:
    """Lock a file or folder during the ``with`` block; yield True if no running process holds its lock."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        free = True
    except OSError:
        free = False
    try:
        yield free
    finally:
        os.close(descriptor)
