"""Staleness curves: how accurate a query's answer still is when it stands for later frames.

``gemel eval --staleness`` measures the curves and writes them into a file. Plans whose objective is about accuracy
need them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import ceil
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from ..errors import InputError, first_line
from .value import Value, problem

__all__ = ["LEAST_FPS", "MOST_AGES", "MOST_FPS", "Staleness", "check_curves", "parse_curves", "read_curves"]

LEAST_FPS, MOST_FPS = 0.001, 1000.0
"""Lowest and highest frame rate, in frames per second, whose frames a staleness curve may count."""
MOST_AGES = 600
"""Maximum number of ages, counted in frames, for which one staleness curve has values."""
_MOST_RESAMPLED = 10_000
"""Maximum number of ages of a staleness curve that was converted to another frame rate."""
_MOST_BYTES = 1 << 20
"""Maximum size in bytes of a file of staleness curves."""
_SAME = 1e-3
"""Relative difference of two frame rates up to which they count as equal."""

_Part = Annotated[float, Field(strict=True, ge=0, le=1)]


class Staleness(Value):
    """Staleness curve of one query."""

    fps: Annotated[float, Field(strict=True, ge=LEAST_FPS, le=MOST_FPS)]
    """Frames per second of the frames that the ages of the curve count."""
    frames: Annotated[int, Field(strict=True, ge=1, le=1 << 31)]
    """Number of frames on which every value of the curve was measured."""
    curve: Annotated[tuple[_Part, ...], Field(min_length=1, max_length=MOST_AGES)]
    """Accuracy, from 0 to 1, of an answer that stands for a frame 1, 2, ... frames after its own, relative to the
    answer to that frame itself."""

    def at(self, fps: float) -> tuple[float, ...]:
        """Return the curve for another frame rate: the ages in seconds stay the same.

        Values between two measured ages are interpolated; an answer of age 0 has accuracy 1. The returned curve always
        ends with the value of the oldest age that was measured.

        Args:
            fps: frames per second of the frames that the ages of the returned curve count.
        """
        step = self.fps / fps
        if abs(step - 1) <= _SAME:
            return self.curve
        count = ceil(min(len(self.curve) / step, _MOST_RESAMPLED))
        ages = np.arange(1, count + 1) * step
        values = np.interp(ages, np.arange(len(self.curve) + 1), (1.0, *self.curve)).round(6).tolist()
        # A curve that was cut off must not promise that older answers are as good as those at the cut.
        return (*values[:-1], self.curve[-1])


_CURVES = TypeAdapter(dict[str, Staleness])


def parse_curves(document: Any, where: str) -> dict[str, Staleness]:
    """Check the content of a file of staleness curves; return query -> curve.

    Args:
        document: parsed content of the file, ``{query: {fps: ..., frames: ..., curve: [...]}}``.
        where: name of the file, which error messages state.

    Raises:
        InputError: the content is not valid; the message names the query and field that is wrong, and why.
    """
    try:
        return _CURVES.validate_python(document)
    except ValidationError as error:
        raise InputError(f"{where}: {problem(error)}") from error


def read_curves(path: str | Path) -> dict[str, Staleness]:
    """Read a YAML or JSON file of staleness curves; return query -> curve.

    Raises:
        InputError: the file cannot be read, is larger than 1 MiB, or holds anything else.
    """
    # Imported here, because manifests have curves, too, and a run needs no YAML.
    import yaml

    try:
        # A pipe may block, and a device may never end.
        if not Path(path).is_file():
            raise InputError(f"{path}: cannot be read: no such file")
        with Path(path).open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise InputError(f"{path}: is larger than {_MOST_BYTES} bytes, so it is no file of staleness curves")
        document = yaml.safe_load(data.decode())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or 'it is not text'}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not YAML: {first_line(error)}") from error
    return parse_curves(document, str(path))


def check_curves(curves: Mapping[str, Staleness], queries: Collection[str], where: str) -> None:
    """Check that every staleness curve is of a query that exists.

    Args:
        curves: query -> curve.
        queries: names of the queries that exist.
        where: name of the curves' source, which the error message states.

    Raises:
        InputError: a curve is of a query that does not exist.
    """
    for name in curves:
        if name not in queries:
            raise InputError(f"{where}: {name!r:.80} is not a query; queries: {', '.join(queries)}")
