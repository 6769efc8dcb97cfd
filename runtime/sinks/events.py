"""Events of a run that sinks receive, and their form as a line of results.jsonl."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from time import monotonic, time
from typing import Any, Literal, get_args

import numpy as np

from ...frames.frame import Frame, Image
from ..decode.results import Detection, Embedding, Raw, Result, SaveArray, Segmentation, result_to_json
from .run_info import RunInfo

__all__ = ["EVENT_KINDS", "EventKind", "SinkEvent", "event_lines", "json_line", "wall_time", "without_pixels"]

EventKind = Literal["result", "error", "frame"]
EVENT_KINDS: tuple[EventKind, ...] = get_args(EventKind)

_NO_PIXELS: Image = np.zeros((0, 0, 3), np.uint8)
_NO_PIXELS.flags.writeable = False
_LEAST_BYTES = 500
"""Bytes of memory that an event takes in addition to its pixels and results: an estimate."""
_FLOAT_BYTES = 32
"""Bytes of memory of one float in a tuple."""


@dataclass(slots=True, eq=False)
class SinkEvent:
    """One thing that a sink is told: a result, a failure of a query, or a frame that no query will take any more."""

    kind: EventKind
    info: RunInfo
    frame: Frame
    query: str = ""
    """Name of the query that the event is about; empty for an event of kind ``frame``, which is about no query."""
    result: Result = ()
    latency_ms: float = 0.0
    message: str = ""
    """Error message of an event of kind ``failure``; empty for other kinds."""
    results: Mapping[str, Result] = field(default_factory=dict)
    """Query -> newest result, for an event of kind ``frame``; empty for other kinds."""
    _line: bytes | None = None

    _footprint: int = 0

    @property
    def footprint(self) -> int:
        """Estimated bytes of memory that the event keeps in use."""
        if not self._footprint:
            kept = (self.result, *self.results.values()) if self.kind == "frame" else (self.result,)
            self._footprint = _LEAST_BYTES + self.frame.image.nbytes + sum(map(_result_bytes, kept))
        return self._footprint

    def line(self, save: SaveArray | None = None) -> bytes:
        """Return the event's result as a line of results.jsonl, with a line break at the end.

        Args:
            save: function that saves large raw outputs to files; see :func:`result_to_json`.
        """
        if save is not None and isinstance(self.result, Raw):
            return self._make_line(save)
        # Several sinks write the same line; the first one makes it.
        if self._line is None:
            self._line = self._make_line(None)
        return self._line

    def _make_line(self, save: SaveArray | None) -> bytes:
        frame, result = self.frame, self.result
        row: dict[str, Any] = {
            "schema": self.info.schema,
            "run": self.info.run,
            "at": round(wall_time(frame), 3),
            "query": self.query,
            "feed": frame.feed,
            "frame": frame.index,
            "time": round(frame.time, 3),
            "latency_ms": round(self.latency_ms, 3),
        }
        if isinstance(result, Embedding) and math.isfinite(sum(result.values)):
            # Takes a quarter of the time that writing a list of numbers takes.
            return b'%s, "result": [%s]}\n' % (json_line(row)[:-2], _numbers(result.values).encode())
        return json_line(row | {"result": result_to_json(result, save)})


def event_lines(events: Iterable[SinkEvent], make: Callable[[SinkEvent], bytes] = SinkEvent.line) -> list[bytes]:
    """Return the lines of results.jsonl for events, up to the first event that cannot be written as a line.

    Args:
        events: events of the kind ``result``, at least one.
        make: function that makes a line of an event.

    Raises:
        Exception: the first event cannot be written as a line.
    """
    lines: list[bytes] = []
    for event in events:
        try:
            lines.append(make(event))
        except Exception as error:  # noqa: PERF203
            if not lines or isinstance(error, OSError):
                raise
            break
    return lines


def wall_time(frame: Frame) -> float:
    """Return the time at which a frame arrived, in Unix seconds."""
    # 0 stands for an unknown time: nothing that is recorded now was recorded in 1970.
    return frame.at or time() - (monotonic() - frame.arrived)


def without_pixels(frame: Frame) -> Frame:
    """Return a frame without its pixels, so that it takes little memory while it waits."""
    return Frame(frame.feed, frame.index, _NO_PIXELS, frame.time, frame.arrived, frame.at)


def _numbers(values: tuple[float, ...]) -> str:
    """Return numbers as JSON, without brackets, rounded to six places as :func:`result_to_json` does."""
    return _number_format(len(values)) % values


@lru_cache(maxsize=16)
def _number_format(count: int) -> str:
    return ", ".join(["%.6f"] * count)


def _result_bytes(result: Result) -> int:
    """Return the estimated bytes of memory that a result takes."""
    if isinstance(result, Raw):
        return sum(values.nbytes for values in result.outputs.values())
    if isinstance(result, Embedding):
        return _FLOAT_BYTES * len(result.values)
    if isinstance(result, Segmentation):
        return sum(len(each.mask.counts) for each in result.classes)
    if not isinstance(result, tuple):
        return 0
    masks = sum(len(item.mask.counts) for item in result if isinstance(item, Detection) and item.mask is not None)
    points = sum(len(item.keypoints) for item in result if isinstance(item, Detection))
    return _LEAST_BYTES * len(result) + 4 * _FLOAT_BYTES * points + masks


def json_line(row: dict[str, Any]) -> bytes:
    """Return a dictionary as a line of JSON; NaN and infinity, which JSON does not have, become null."""
    try:
        text = json.dumps(row, allow_nan=False, ensure_ascii=False)
    except ValueError:
        # A diverged model answers NaN. JSON does not have that, and most readers would refuse the whole line.
        text = json.dumps(_finite(row), allow_nan=False, ensure_ascii=False)
    # A label with half of a surrogate pair cannot be written as UTF-8.
    return text.encode("utf-8", "backslashreplace") + b"\n"


def _finite(value: Any) -> Any:
    """Return a JSON value with None in place of every NaN and infinity, in nested lists and dictionaries, too."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return value
