"""Feeds of a run: each camera, stream or recording is read on its own thread, which keeps frames ready to be taken.

:mod:`.feed` has the thread, and :mod:`.pacing` decides when frames are due. :mod:`gemel.frames` opens and decodes
sources.
"""

from __future__ import annotations

from .feed import Feed
from .pacing import Backoff

__all__ = ["Backoff", "Feed"]
