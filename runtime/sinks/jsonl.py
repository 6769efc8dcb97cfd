"""The sink that writes results.jsonl: one line for each result of a query on a frame."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ...frames.frame import Frame
from ..decode.results import Result, result_to_json
from .sink import Sink

__all__ = ["ResultsSink"]

_MOST_NAME = 100
"""Characters of a query's or an output's name that a file name may have; file systems allow 255 in all."""


class ResultsSink(Sink):
    """A file of results in JSON lines. Each result is written as it comes, a whole line at a time.

    Raw outputs with many values go to files of their own, ``<query>-<frame>-<number>-<output>.npy`` in the folder
    ``<name of the results file>-raw`` beside the file of results. The line has their path, relative to its own folder.

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
        }
        saved = _Arrays(self._path, query, frame.index)
        try:
            self._file.write(_line(row | {"result": result_to_json(result, saved.save)}))
        except OSError as error:
            raise self._failure(error) from error

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> InputError:
        return InputError(f"{self._path}: cannot write results: {error.strerror or error}")


class _Arrays:
    """Files of the raw outputs of one query on one frame."""

    def __init__(self, results: Path, query: str, frame: int) -> None:
        self._folder = results.with_name(f"{results.stem}-raw")
        self._start, self._count = f"{_file_name(query)}-{frame:06d}", 0

    def save(self, name: str, values: NDArray[Any]) -> str:
        """Write an output, and return its path relative to the folder of the results.

        Raises:
            OSError: the file cannot be written.
        """
        # The number tells outputs apart whose names are equal in their first characters.
        path = self._folder / f"{self._start}-{self._count}-{_file_name(name)}.npy"
        self._count += 1
        self._folder.mkdir(exist_ok=True)
        # Strings come as Python objects; as fixed-width text they can be read without pickle.
        np.save(path, values.astype(str) if values.dtype == object else values, allow_pickle=False)
        return f"{self._folder.name}/{path.name}"


def _file_name(name: str) -> str:
    """Return a name without characters that lead out of a folder; names from a manifest may hold anything."""
    return quote(name, safe=" ")[:_MOST_NAME]


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
