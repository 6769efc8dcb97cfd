"""Schema and reader of boxes.yaml: the boxes of a fleet, with their memory and speed, and the feeds that stay on them.

``docs/boxes.schema.json`` is made of these models: their docstrings are what an editor shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, ValidationError, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from ..bundles.manifest import Name
from ..errors import InputError
from ..workload.document.explain import explain, place
from ..workload.document.json_schema import schema_text
from ..workload.document.meant import parse_memory_key
from ..workload.document.strict import Strict
from ..workload.document.yaml_text import parse_yaml

__all__ = ["BOXES_SCHEMA_FILE", "BoxSettings", "BoxesFile", "boxes_schema", "read_boxes"]

BOXES_SCHEMA_FILE = "boxes.schema.json"
"""Name of the file with the JSON schema of boxes.yaml, in docs."""
_MEMORY = {"anyOf": [{"type": "integer", "minimum": 1 << 20}, {"type": "string"}], "examples": ["512MiB", "2GB"]}


class BoxSettings(Strict):
    """Box that runs queries: its memory, its speed, and the feeds that only it can see."""

    homes: ClassVar[Mapping[str, str]] = {"boxes": "the top level of the file"}

    name: Name
    """Name of the box: letters, digits, ``-`` and ``_``."""
    memory: Annotated[int, BeforeValidator(partial(parse_memory_key, bytes_only=True)), WithJsonSchema(_MEMORY)]
    """Memory of the box for weights, such as ``512MiB``."""
    speed: Annotated[float, Field(gt=0)] = 1.0
    """Speed of the box, relative to the one on which the profiles were measured: with 2, models run in half the
    time."""
    feeds: list[str] = Field(default=[])
    """Feeds that must stay on this box. A feed that several boxes list may be on any of these; a feed that no box lists
    may be on every box."""
    max_queries: Annotated[int, Field(ge=1)] | None = None
    """Maximum number of queries on the box; no limit if left out."""


class BoxesFile(Strict):
    """Boxes of a fleet, among which queries are placed."""

    homes: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("name", "memory", "speed", "feeds", "max_queries"), "an item of boxes"
    )

    schema_version: Literal["1"]
    """Version of the format of boxes.yaml, in quotes."""
    boxes: Annotated[list[BoxSettings], Field(min_length=1)]
    """Boxes of the fleet."""

    @model_validator(mode="after")
    def _unique(self) -> BoxesFile:
        """Check that no two boxes have the same name, which would make a plan ambiguous."""
        seen: set[str] = set()
        for index, box in enumerate(self.boxes):
            if box.name in seen:
                # :func:`explain` reads ``at`` to find the line of the mistake.
                context: dict[str, Any] = {"at": ("boxes", index, "name"), "name": repr(box.name)}
                raise PydanticCustomError("name", "two boxes are called {name}; names must be unique", context)
            seen.add(box.name)
        return self


def boxes_schema() -> str:
    """Return the JSON schema of boxes.yaml as the text of a file."""
    return schema_text(BoxesFile, "boxes.yaml of gemel")


def read_boxes(path: Path, feeds: frozenset[str]) -> tuple[BoxSettings, ...]:
    """Read boxes.yaml.

    Args:
        path: the file.
        feeds: names of the feeds that exist.

    Returns:
        The boxes, in the order of the file.

    Raises:
        InputError: the file cannot be read, has a value that is not allowed, or names a feed that does not exist.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or 'it is not text'}") from error
    node, document = parse_yaml(text, str(path))
    if not isinstance(document, dict):
        raise InputError(f"{path}: a mapping with schema_version and boxes is expected")
    try:
        boxes = BoxesFile.model_validate(document).boxes
    except ValidationError as error:
        raise InputError(explain(path, node, error)) from error
    for index, box in enumerate(boxes):
        for at, feed in enumerate(box.feeds):
            if feed not in feeds:
                known = f"{feed!r} is not a feed of the bundles; feeds: {', '.join(sorted(feeds))}"
                raise InputError(place(path, node, ("boxes", index, "feeds", at), known))
    return tuple(boxes)
