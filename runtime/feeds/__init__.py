"""Feeds of a run: each camera, stream or recording is read on a thread of its own, which holds frames ready.

:mod:`.feed` has the thread, and :mod:`.pacing` decides when frames are due. Sources are opened and decoded by
:mod:`gemel.frames`.
"""

from __future__ import annotations

from .feed import Feed
from .pacing import Backoff

__all__ = ["Backoff", "Feed"]
