"""Log lines of a running bundle on standard error: with time and level, as text or as JSON."""

from __future__ import annotations

import json
import logging
import sys
from datetime import datetime, timezone

from ...errors import InputError

__all__ = ["LEVELS", "set_up_logging"]

LEVELS = ("debug", "info", "warning", "error")
"""Names of the log levels. Lines of the chosen level and of all later levels in this list are written."""


def set_up_logging(level: str = "info", *, as_json: bool = False) -> None:
    """Write gemel's log lines to standard error from now on. A second call replaces the settings.

    Args:
        level: one of :data:`LEVELS`.
        as_json: whether a line is a JSON object with ``at`` (Unix seconds), ``level``, ``logger`` and ``message``.

    Raises:
        InputError: there is no such level.
    """
    if level not in LEVELS:
        raise InputError(f"--log-level: {level!r} is not allowed: one of {', '.join(LEVELS)} is expected")
    handler = _ToStderr()
    handler.setFormatter(_JsonLines() if as_json else _TextLines())
    logger = logging.getLogger("gemel")
    for old in list(logger.handlers):
        if isinstance(old, _ToStderr):
            logger.removeHandler(old)
    logger.addHandler(handler)
    logger.setLevel(level.upper())


class _ToStderr(logging.Handler):
    """Handler that writes to whatever ``sys.stderr`` is at that moment, because a live table may replace it."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()
        except Exception:
            self.handleError(record)


class _TextLines(logging.Formatter):
    """Formatter of lines such as ``2026-11-27T22:27:04.120Z warning feed gate: refused the password``."""

    def format(self, record: logging.LogRecord) -> str:
        return f"{_iso(record.created)} {record.levelname.lower()} {_message(self, record)}"


class _JsonLines(logging.Formatter):
    """Formatter of log lines that are one JSON object each."""

    def format(self, record: logging.LogRecord) -> str:
        content = {
            "at": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(self, record),
        }
        return json.dumps(content)


def _iso(seconds: float) -> str:
    """Return a Unix time as text in UTC, with milliseconds."""
    moment = datetime.fromtimestamp(seconds, timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _message(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    """Return the message of a log record in one line, with the traceback if the record has one."""
    text = record.getMessage()
    if record.exc_info:
        text = f"{text}: {formatter.formatException(record.exc_info)}"
    return " ".join(text.split("\n"))
