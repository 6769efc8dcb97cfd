"""The sink that writes results.jsonl: one line for each result of a query on a frame."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...frames.frame import Frame
from ..decode.results import Result, result_to_json
from .sink import Sink

__all__ = ["ResultsSink"]


class ResultsSink(Sink):
    """A file of results in JSON lines. Each result is written as it comes, a whole line at a time.

    Raises:
        InputError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = path.open("w", buffering=1, encoding="utf-8")
        except OSError as error:
            raise self._failure(error) from error

    def on_result(self, query: str, frame: Frame, result: Result, latency_ms: float) -> None:
        row = {
            "query": query,
            "feed": frame.feed,
            "frame": frame.index,
            "time": round(frame.time, 3),
            "latency_ms": round(latency_ms, 3),
            "result": result_to_json(result),
        }
        try:
            self._file.write(_line(row))
        except OSError as error:
            raise self._failure(error) from error

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> InputError:
        return InputError(f"{self._path}: cannot write results: {error.strerror or error}")


def _line(row: dict[str, Any]) -> str:
    """Return a row as a line of JSON; values that JSON does not have become null."""
    try:
        return json.dumps(row, allow_nan=False, ensure_ascii=False) + "\n"
    except ValueError:
        # A diverged model answers NaN. JSON does not have that, and most readers would refuse the whole line.
        return json.dumps(_finite(row), allow_nan=False, ensure_ascii=False) + "\n"


def _finite(value: Any) -> Any:
    """Return a JSON value with None in place of NaN and infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return value
