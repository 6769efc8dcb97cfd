"""Live feeds: a thread for each camera, stream or recording, which holds frames ready for the queries.

What may be read, and how, is :mod:`gemel.frames`; ``pacing`` says when, ``feed`` is the thread.
"""

from __future__ import annotations

from .feed import Feed
from .pacing import Backoff

__all__ = ["Backoff", "Feed"]
