"""Freed memory: the C library keeps the pages of freed tensors for the next ones."""

from __future__ import annotations

import ctypes

__all__ = ["keep_freed_memory"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Numbers of two parameters of ``mallopt``, from glibc's ``malloc.h``."""
_LARGEST = (1 << 31) - 1
"""Largest value of a parameter of ``mallopt``, in bytes."""


def keep_freed_memory() -> None:
    """Let the C library keep the pages of freed tensors until the process ends, where it is glibc.

    By default glibc maps each tensor above 32 MiB anew and gives it back when it is freed, so every layer waits until
    the system has filled its output's pages with zeros.
    """
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST)
        mallopt(_M_TRIM_THRESHOLD, _LARGEST)
