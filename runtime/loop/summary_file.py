"""File summary.json, which is written every minute while a run goes on, and when it ends."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread
from time import time
from typing import Literal

from ...durable import is_plain, write_through
from ...errors import first_line
from .summary import Summary

__all__ = ["RunState", "SummaryFile"]

_log = logging.getLogger(__name__)

RunState = Literal["running", "ended", "stopped", "failed"]
"""State of a run: it goes on; it came to its end; it was stopped from outside; it ended with an error."""

_EVERY_S = 60.0
"""Seconds between two writes of summary.json while a run goes on."""


class SummaryFile:
    """File with the statistics of a run. Readers see the old content or all of the new content.

    Args:
        path: the file; None to write nothing. A pipe or device is only written to when the run ends.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._started = time()
        self._over = Event()
        self._thread: Thread | None = None
        self.error: str | None = None
        """Reason why summary.json could not be written the last time; None if it could."""

    def start(self, summarise: Callable[[], Summary]) -> None:
        """Write summary.json now and every minute, on a thread, until :meth:`finish`.

        Args:
            summarise: function that returns the statistics so far; called on that thread.
        """
        if self._path is not None and is_plain(self._path):
            self._thread = Thread(target=self._repeat, args=(summarise,), name="gemel-summary", daemon=True)
            self._thread.start()

    def finish(self, summary: Summary, error: BaseException | None = None) -> None:
        """Write summary.json for the last time.

        Args:
            summary: statistics of the run.
            error: exception that ended the run; None if there was none.
        """
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        state: RunState = "failed" if error is not None else "stopped" if summary.stopped else "ended"
        self._write(summary, state, None if error is None else f"{type(error).__name__}: {first_line(error)}")

    def _repeat(self, summarise: Callable[[], Summary]) -> None:
        while True:
            try:
                self._write(summarise(), "running", None)
            except Exception:
                # The run is worth more than its statistics.
                _log.exception("the statistics of the run cannot be written")
                return
            if self._over.wait(_EVERY_S):
                return

    def _write(self, summary: Summary, state: RunState, error: str | None) -> None:
        """Write summary.json, if it has a path. An error is kept, and logged when it is another than the last time."""
        if self._path is None:
            return
        status = {
            "state": state,
            "started": round(self._started, 3),
            "at": round(time(), 3),
            "error": error,
            "failures": summary.failures,
        }
        data = (json.dumps({"status": status, **summary.to_json()}, indent=2) + "\n").encode()
        before, self.error = self.error, None
        try:
            write_through(self._path, data)
        except OSError as failure:
            self.error = failure.strerror or str(failure)
        if self.error != before:
            _log.warning("%s: %s", self._path, f"cannot be written: {self.error}" if self.error else "is written again")
