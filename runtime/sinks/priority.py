"""Priority of the threads that write outputs."""

from __future__ import annotations

import contextlib
import os
from threading import get_native_id

__all__ = ["step_back"]

_NICENESS = 10
"""Niceness of a thread whose work takes much processor time: models and decoding come first."""


def step_back() -> None:
    """Lower the priority of the calling thread, so that models and decoding come first."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, get_native_id(), _NICENESS)
