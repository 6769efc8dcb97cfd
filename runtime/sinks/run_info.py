"""Identification of a run, which stands in every line of results."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from datetime import datetime, timezone

__all__ = ["RunInfo", "utc_stamp"]


def utc_stamp(at: float) -> str:
    """Return a Unix time as text for file names, with milliseconds, in UTC.

    >>> utc_stamp(1795818134.5)
    '20261127T222214.500Z'
    """
    moment = datetime.fromtimestamp(at, timezone.utc)
    return f"{moment:%Y%m%dT%H%M%S}.{moment.microsecond // 1000:03d}Z"


def _new_run() -> str:
    # The random part tells runs apart on a machine whose clock is not set when it starts.
    return f"{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"


@dataclass(frozen=True, slots=True)
class RunInfo:
    """Identifier of a run, and version of the format of results."""

    run: str = field(default_factory=_new_run)
    """Identifier of the run: the time of its start in UTC, and a random part."""
    schema: str = "1"
    """Version of the format of a line of results. Fields may be added without a new version."""
