"""Chrome traces of a run: what was run, loaded and decoded when. chrome://tracing and ui.perfetto.dev show them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from time import monotonic

from ..errors import InputError

__all__ = ["Trace", "Watch", "unwatched"]

_log = logging.getLogger(__name__)

_MOST = 1_000_000
"""Maximum number of spans (timed intervals) to keep; those of four cameras over a day would fill the memory."""

Watch = Callable[[str, float, float], None]
"""Function called with a span (timed interval): its name, its begin and its end in seconds of the monotonic clock."""


def unwatched(name: str, begin: float, end: float) -> None:
    """Ignore a span (timed interval) of a run; the default :data:`Watch`, for a run without a trace."""


class Trace:
    """Recorder of spans (timed intervals) in named lanes, each of which a viewer draws as a row. Thread-safe."""

    def __init__(self) -> None:
        self._began = monotonic()
        self._lanes: dict[str, int] = {}
        self._spans: list[tuple[int, str, float, float, dict[str, object]]] = []
        self._lock = Lock()
        self.dropped = 0
        """Number of spans (timed intervals) that were not kept because there were too many."""

    def span(self, lane: str, name: str, begin: float, end: float, **details: object) -> None:
        """Add a span (timed interval) from ``begin`` to ``end``, in seconds of the monotonic clock.

        Args:
            lane: name of the lane (row of the picture) that the span is drawn on.
            name: text that is drawn on the span.
            begin: second at which the span begins.
            end: second at which the span ends.
            details: values that the viewer shows when the span is selected.
        """
        with self._lock:
            number = self._lanes.setdefault(lane, len(self._lanes))
            if len(self._spans) < _MOST:
                self._spans.append((number, name, begin, end, details))
            else:
                self.dropped += 1

    def write(self, path: Path) -> None:
        """Write the trace to a file as JSON.

        Raises:
            InputError: the file cannot be written.
        """
        with self._lock:
            names = [_named("thread_name", number, lane) for lane, number in self._lanes.items()]
            spans = [
                {
                    "name": name,
                    "ph": "X",
                    "pid": 0,
                    "tid": number,
                    "ts": (begin - self._began) * 1e6,
                    "dur": (end - begin) * 1e6,
                    "args": details,
                }
                for number, name, begin, end, details in self._spans
            ]
        document = {"traceEvents": [_named("process_name", 0, "gemel"), *names, *spans], "displayTimeUnit": "ms"}
        if self.dropped:
            _log.warning("%s: the last %d spans are missing, as only %d are kept", path, self.dropped, _MOST)
        try:
            path.write_text(json.dumps(document), encoding="utf-8")
        except OSError as error:
            raise InputError(f"{path}: cannot write the trace: {error.strerror}") from error


def _named(what: str, number: int, name: str) -> dict[str, object]:
    """Return the event of a Chrome trace that names the process or a lane (row), which ``number`` identifies.

    ``what`` is the kind of the event, ``process_name`` or ``thread_name``.
    """
    return {"name": what, "ph": "M", "pid": 0, "tid": number, "args": {"name": name}}
