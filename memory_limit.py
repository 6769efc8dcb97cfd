"""Limit on the memory that the process may take while it works on a file that may be hostile."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path
from threading import Lock

__all__ = ["limited_memory"]

_MOST_RUN_BYTES = 8 << 30
"""Maximum bytes of memory that opening or running an ONNX file may take beside its weights."""
_ONE_AT_A_TIME = Lock()
"""Lock that lets one thread at a time change the process's memory limit."""


@contextlib.contextmanager
def limited_memory(weights: int) -> Iterator[None]:
    """Limit the additional memory that the process may take during the ``with`` block.

    A hostile graph then fails alone and does not take the machine down. Allocations beyond the limit fail. The limit
    holds for the whole process, so one thread at a time enters the block. Nothing is limited on a system without /proc.

    Args:
        weights: bytes of the weights that are opened in the block.
    """
    status = Path("/proc/self/statm")
    if not status.exists():
        yield
        return
    with _ONE_AT_A_TIME:
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        taken = int(status.read_text().split()[0]) * resource.getpagesize()
        # Weights may be held three times: in the serialised graph, parsed, and as ONNX Runtime's own copy.
        wanted = taken + _MOST_RUN_BYTES + 3 * weights
        limits = [limit for limit in (wanted, soft, hard) if limit != resource.RLIM_INFINITY]
        resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
