"""Format of a sample: a frame as JPEG, and beside it a JSON file with the answers that queries gave on the frame.

``<feed>-<time>.jpg`` and ``<feed>-<time>.json`` are one sample. The JSON file is written last and has the hash of the
JPEG file, so that a reader knows whether both are whole.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator

from ...bundles.stage_specs import Sha256, flat_name
from ...bundles.value import Value, problem

__all__ = ["PICTURE_SUFFIX", "RECORD_SUFFIX", "SAMPLE_VERSION", "SampleRecord", "parse_record"]

SAMPLE_VERSION = "1.0"
"""Version of the format of samples. A newer minor version adds fields; a newer major version is refused."""
PICTURE_SUFFIX, RECORD_SUFFIX = ".jpg", ".json"
"""Suffixes of the two files of a sample."""

_Text = Annotated[str, Field(max_length=256)]


class SampleRecord(Value):
    """Content of the JSON file of a sample."""

    schema_version: str = SAMPLE_VERSION
    run: _Text
    """Identifier of the run that answered the frame."""
    bundle: _Text
    """SHA-256 of the manifest of the bundle that answered the frame."""
    feed: _Text
    frame: Annotated[int, Field(ge=0)]
    """Index of the sampled frame in its feed, in this run."""
    time: float
    """Seconds of media time of the sampled frame since the feed's first frame in this run."""
    at: float
    """Time at which the sampled frame arrived, in Unix seconds of the clock of the box."""
    image: _Text
    """Name of the JPEG file of the sampled frame."""
    sha256: Sha256
    """SHA-256 of the JPEG file of the sampled frame."""
    size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]
    """Height and width of the sampled frame in pixels."""
    changed: bool = False
    """Whether a hook of the user has changed the pixels, after the queries had answered the frame."""
    answers: dict[_Text, Any]
    """Query -> its answer on this very frame, as the field ``result`` of a line of results.jsonl."""
    skipped: tuple[_Text, ...] = ()
    """Queries of the feed that gave no answer on this very frame."""

    @field_validator("image")
    @classmethod
    def _inside(cls, value: str) -> str:
        return flat_name(value)

    @field_validator("time", "at")
    @classmethod
    def _finite(cls, value: float) -> float:
        if not math.isfinite(value):
            raise ValueError("a finite number is expected")
        return value


def parse_record(data: bytes) -> SampleRecord:
    """Read the JSON file of a sample.

    Raises:
        ValueError: the content is not JSON, does not match the format, or has a newer major version.
    """
    try:
        record = SampleRecord.model_validate_json(data)
    except ValidationError as error:
        raise ValueError(problem(error)) from error
    major = record.schema_version.partition(".")[0]
    if major != SAMPLE_VERSION.partition(".")[0]:
        raise ValueError(f"schema_version is {record.schema_version}; this gemel reads {SAMPLE_VERSION}")
    return record
