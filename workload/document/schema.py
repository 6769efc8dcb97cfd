"""Schema of workload.yaml, as Pydantic models.

References to files keep the form in which they were written. :mod:`.paths` resolves them against ``Workload.root``.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, field_validator, model_validator
from pydantic_core import PydanticCustomError

from ...bundles.budget import parse_memory
from ...bundles.manifest import Name, Precision

__all__ = ["Data", "DeviceSettings", "FeedSettings", "Input", "Model", "Query", "Workload"]

_UNITS_MS = {"ms": 1.0, "s": 1000.0}


class _Strict(BaseModel):
    """Base of all parts of a workload: frozen, without unknown keys, and with finite numbers only."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, value: Any) -> Any:
        """Refuse an unknown key, and suggest the most similar known one, as it is usually a typo."""
        if isinstance(value, dict):
            known = list(cls.model_fields)
            for key in value:
                if key not in known:
                    near = difflib.get_close_matches(str(key), known, n=1)
                    hint = f"did you mean {near[0]!r}? " if near else ""
                    raise PydanticCustomError(
                        "unknown_key",
                        "unknown key {key}; {hint}allowed: {known}",
                        {"key": repr(key), "hint": hint, "known": ", ".join(known)},
                    )
        return value


def _milliseconds(value: Any) -> Any:
    """Parse a duration such as ``100ms`` or ``0.5s`` into milliseconds; other types than text stay as they are."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|s)\s*", value)
        if not match:
            raise PydanticCustomError("duration", "a duration such as 100ms or 0.5s is expected")
        return float(match[1]) * _UNITS_MS[match[2]]
    return value


def _memory(value: Any) -> Any:
    """Parse a memory budget such as ``64MiB`` (:func:`.parse_memory`); other types than text stay as they are."""
    try:
        return parse_memory(value) if isinstance(value, str) else value
    except ValueError as error:
        raise PydanticCustomError("memory", "{reason}", {"reason": str(error)}) from error


class DeviceSettings(_Strict):
    """Device that runs the workload."""

    backend: Literal["ort-cpu", "ort-cuda", "tensorrt", "tensorrt-rtx"] = "ort-cpu"
    memory: Annotated[Annotated[int, Field(gt=0, strict=True)] | str, BeforeValidator(_memory)] = "all"
    """Memory budget for weights: bytes, ``all``, ``min`` (what the largest model needs), or a share such as ``50%``."""


class FeedSettings(_Strict):
    """A camera, video or folder that frames come from."""

    source: str
    """File, folder or address of a camera."""
    fps: Annotated[float, Field(gt=0)] | None = None
    """Most frames per second that are delivered; None for all frames."""
    loop: bool = False
    """Whether a recording starts again at its end."""


class Input(_Strict):
    """Preprocessing that a model expects; fields that are left out come from the model itself."""

    size: Annotated[tuple[int, int], Field(description="height, width")] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    scale: float | None = None
    color: Literal["rgb", "bgr", "gray"] | None = None
    fit: Literal["stretch", "letterbox"] | None = None
    pad: float | None = None

    @field_validator("size")
    @classmethod
    def _positive(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        """Check that height and width are at least one pixel."""
        if value is not None and min(value) < 1:
            raise PydanticCustomError("size", "height and width in pixels must be at least 1")
        return value

    @field_validator("mean", "std")
    @classmethod
    def _channels(cls, value: tuple[float, ...] | None) -> tuple[float, ...] | None:
        """Check that there is one number, or one for each of three channels."""
        if value is not None and len(value) not in (1, 3):
            raise PydanticCustomError("channels", "one number, or one for each of three channels, is expected")
        return value

    @field_validator("std", "scale")
    @classmethod
    def _nonzero(cls, value: Any) -> Any:
        """Check that no number is 0."""
        if value is not None and 0 in (value if isinstance(value, tuple) else (value,)):
            raise PydanticCustomError("nonzero", "numbers other than 0 are expected")
        return value


class Model(_Strict):
    """A model: a PyTorch factory with arguments and weights, or an ONNX file."""

    factory: Annotated[str, Field(pattern=r"^\w+(\.\w+)*:\w+(\.\w+)*$")] | None = None
    """``module:callable`` that returns an ``nn.Module``; the module is installed, or beside the workload file."""
    onnx: str | None = None
    """Path of an ONNX file."""
    args: dict[str, Any] = {}
    """Keyword arguments of the factory."""
    weights: str | None = None
    """Path of a state dict for the factory's module."""
    input: Input = Input()

    @model_validator(mode="after")
    def _one_origin(self) -> Model:
        """Check that the model comes from a factory or from an ONNX file, not both."""
        if (self.factory is None) == (self.onnx is None):
            raise PydanticCustomError("origin", "a model has either factory (module:callable) or onnx (a file)")
        if self.onnx is not None and (self.args or self.weights):
            raise PydanticCustomError("origin", "args and weights go with factory; an ONNX file has its own")
        return self


class Data(_Strict):
    """Data sets of a query; :mod:`gemel.workload.data` lists the allowed kinds."""

    train: str | None = None
    """Images to retrain on."""
    val: str | None = None
    """Images to evaluate on; None holds out a part of ``train``."""


class Query(_Strict):
    """A model and a task on the frames of a feed, with an accuracy target."""

    name: Name
    feed: str
    task: Literal["classification", "detection", "embedding"]
    model: Model
    labels: list[str] | None = None
    threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    """Lowest score of a result that is reported, from 0 to 1; None for the detector's own."""
    target: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Accuracy that merging and lower precision must keep, relative to the unmerged model, from 0 to 1."""
    precision: Precision | None = None
    """Precision to compile the query's model in; None for what gemel-compile is told."""
    data: Data | None = None


class Workload(_Strict):
    """A workload: a device, feeds, and queries on these feeds."""

    schema_version: Literal["1"]
    device: DeviceSettings = DeviceSettings()
    sla: Annotated[float, BeforeValidator(_milliseconds), Field(gt=0)] = 100.0
    """Milliseconds that may pass from a frame's arrival to its result."""
    feeds: Annotated[dict[Name, FeedSettings], Field(min_length=1)]
    queries: Annotated[list[Query], Field(min_length=1)]

    _path: Path = PrivateAttr(default=Path("workload.yaml"))

    @property
    def path(self) -> Path:
        """The file that the workload was read from."""
        return self._path

    @property
    def root(self) -> Path:
        """The folder that relative references start from."""
        return self._path.parent

    @model_validator(mode="after")
    def _consistent(self) -> Workload:
        """Check that query names are unique and that queries name existing feeds."""
        seen: set[str] = set()
        for index, query in enumerate(self.queries):
            # :mod:`gemel.workload.document.load` reads ``at`` to find the line of the mistake.
            if query.name in seen:
                context: dict[str, Any] = {"at": ("queries", index, "name"), "name": repr(query.name)}
                raise PydanticCustomError("name", "two queries are called {name}; names must be unique", context)
            seen.add(query.name)
            if query.feed not in self.feeds:
                context = {
                    "at": ("queries", index, "feed"),
                    "feed": repr(query.feed),
                    "feeds": ", ".join(self.feeds),
                }
                raise PydanticCustomError("feed", "{feed} is not a feed; feeds: {feeds}", context)
        return self
