"""Schema of workload.yaml, as Pydantic models.

References to files keep the form in which they were written. :mod:`.paths` resolves them against ``Workload.root``.
A file of labels is read when the workload is validated, so that ``Query.labels`` is always a list.
``docs/workload.schema.json`` is made of these models: their docstrings are what an editor shows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    PrivateAttr,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from ...bundles.goals import ObjectiveName
from ...bundles.manifest import Hardware, Name, Precision, Transport
from ...bundles.staleness import Staleness
from . import meant, output_meant
from .model_schema import NAMES_SCHEMA, Input, Model
from .output_schema import OutputList
from .strict import Strict

__all__ = ["Data", "DeviceSettings", "FeedSettings", "Input", "Model", "Query", "Workload"]

_MEMORY = {"anyOf": [{"type": "integer", "minimum": 1 << 20}, {"type": "string"}], "examples": ["64MiB", "50%", "min"]}
_DURATION = {"anyOf": [{"type": "number", "minimum": 1}, {"type": "string", "pattern": r"^\d+(\.\d+)?\s*(ms|s)$"}]}
_Duration = Annotated[
    float, BeforeValidator(meant.parse_duration), Field(gt=0, allow_inf_nan=False), WithJsonSchema(_DURATION)
]
_SECONDS = {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string"}], "examples": ["5s", "30s", "1m"]}
_CURVES = {"anyOf": [{"type": "string"}, {"type": "object"}], "examples": ["staleness.yaml"]}
_LABELS = {"anyOf": [{"type": "array", "items": {"type": "string"}, "minItems": 1}, {"type": "string"}]}


class DeviceSettings(Strict):
    """Device that runs the workload: its backend, and its memory for weights."""

    backend: Literal["ort-cpu", "auto-cpu", "openvino", "openvino-fast", "ort-cuda", "tensorrt", "tensorrt-rtx"] = (
        "ort-cpu"
    )
    """Backend that runs models; ``gemel-run --backend`` replaces it."""
    memory: Annotated[int | str, BeforeValidator(meant.parse_memory_key), WithJsonSchema(_MEMORY)] = "all"
    """Memory budget for weights: ``64MiB``, ``all``, ``min`` (what the largest model needs), or a share such as ``50%``
    of all weights."""

    @classmethod
    def _meant(cls, value: Any) -> str:
        return f"backend: {value}" if isinstance(value, str) else ""


class FeedSettings(Strict):
    """Camera, video or folder that frames come from."""

    source: Annotated[str, BeforeValidator(meant.parse_source)]
    """Video file, folder of images, address of a camera (``rtsp://``, ``http://``), device such as ``/dev/video0``, or
    ``package:NAME/path``."""
    fps: Annotated[float, Field(gt=0)] | None = None
    """Maximum number of the feed's frames to use per second; all frames if left out."""
    loop: bool = False
    """Whether a recording starts again at its end."""
    transport: Transport = "auto"
    """Transport of an RTSP camera: ``tcp``, ``udp`` (which may lose pictures), or ``auto``, which is TCP where the
    camera offers it."""
    timeout: Annotated[
        float, BeforeValidator(output_meant.parse_period), Field(gt=0, le=3600), WithJsonSchema(_SECONDS)
    ] = 5.0
    """Time without an answer or a picture after which a camera is opened again, such as ``5s`` or ``1m``; a bare number
    is seconds."""
    hardware: Hardware = "none"
    """Device that decodes the feed's video: ``none`` (the processor), ``cuda``, ``vaapi``, ``v4l2``, or ``auto`` for
    one that is there."""

    @classmethod
    def _meant(cls, value: Any) -> str:
        return f"source: {value}" if isinstance(value, str) else ""


class Data(Strict):
    """Data sets of a query; :mod:`gemel.workload.data` lists the allowed kinds."""

    train: str | None = None
    """Images to retrain the query's model on."""
    val: str | None = None
    """Images to evaluate the query's model on; if left out, some images of ``train`` are held out."""

    @classmethod
    def _meant(cls, value: Any) -> str:
        return f"train: {value}" if isinstance(value, str) else ""


class Query(Strict):
    """Model and task on the frames of a feed, with an accuracy target."""

    name: Name
    """Name of the query: letters, digits, ``-`` and ``_``."""
    feed: str
    """Name of the feed whose frames the query sees."""
    task: Literal["classification", "detection", "embedding", "segmentation", "pose", "ocr", "raw"]
    """Kind of answer that the query gives; ``raw`` reports the model's outputs as they are."""
    model: Model
    """Model that answers the query."""
    decode: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)] | None = None
    """Name of the layout of the model's outputs, such as ``yolov8``; found from the outputs if left out."""
    activation: Literal["softmax", "sigmoid", "none"] | None = None
    """Function that turns the model's outputs into scores; found from the model if left out."""
    labels: Annotated[list[str], Field(min_length=1), WithJsonSchema(_LABELS)] | None = None
    """Names of the model's classes, the background not counted: a list, or a text file with one label per line."""
    classes: (
        Annotated[list[str], BeforeValidator(meant.parse_names), Field(min_length=1), WithJsonSchema(NAMES_SCHEMA)]
        | None
    ) = None
    """Labels or class numbers that the query reports; all if left out."""
    threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    """Minimum score, from 0 to 1, of a result that the query reports; the detector's own if left out."""
    target: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Accuracy that merging and lower precision must keep, relative to the unmerged model, from 0 to 1."""
    precision: Precision | None = None
    """Precision to compile the query's model in; that of ``gemel-compile --precision`` if left out."""
    data: Data | None = None
    """Images to retrain, calibrate and evaluate the query's model on; frames of the feed if left out."""
    sla: _Duration | None = None
    """Maximum time from a frame's arrival to the query's result, such as ``100ms``; that of the workload if left
    out."""
    min_fps: Annotated[float, Field(ge=0)] = 0.0
    """Frames per second that the query must at least answer; plans see to this before the objective."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Importance of the query, compared with others of the same priority: under ``max-min``, a query
    with weight 2 gets twice the share of a query with weight 1."""
    priority: int = 0
    """Priority of the query: plans serve queries of a higher priority as far as possible before the others."""

    @field_validator("labels", mode="before")
    @classmethod
    def _read_labels(cls, value: Any, info: ValidationInfo) -> Any:
        """Read a query's labels from a file, if ``labels`` is a path, relative to the folder in ``info.context``."""
        return meant.parse_labels(value, (info.context or {}).get("root", Path()))

    @model_validator(mode="after")
    def _known_classes(self) -> Query:
        """Check that a query's ``classes`` are among its labels, and that its task has classes."""
        for key in ("classes", "activation"):
            if getattr(self, key) is not None and self.task in ("embedding", "raw"):
                raise meant.mistake(f"the task {self.task} has no classes; leave it out", key)
        if self.classes is not None and self.labels is not None:
            meant.check_classes(self.classes, self.labels)
        return self


class Workload(Strict):
    """Workload: a device, feeds, and queries on these feeds."""

    schema_version: Literal["1"]
    """Version of the format of workload.yaml, in quotes."""
    device: DeviceSettings = DeviceSettings()
    """Device that runs the workload."""
    sla: _Duration = 100.0
    """Maximum time from a frame's arrival to its result: ``100ms``, ``0.5s``, or a number of milliseconds."""
    objective: ObjectiveName = "max-min"
    """Objective of plans if not all weights fit: ``max-min`` (the lowest share of frames that a query gets), ``sum``
    (the frames of all queries), ``accuracy`` (the lowest expected accuracy) or ``mean-accuracy``."""
    staleness: Annotated[dict[Name, Staleness], WithJsonSchema(_CURVES)] = Field(default={})
    """File of staleness curves, which ``gemel eval --staleness`` writes: how accurate an answer still is for later
    frames. The objectives ``accuracy`` and ``mean-accuracy`` need one for each query."""
    feeds: Annotated[dict[Name, FeedSettings], Field(min_length=1)]
    """Feeds by name: cameras, videos and folders that frames come from."""
    base: str | None = None
    """Path of the weights that models were fine-tuned from, for all models that it fits; ``model.base`` is for one."""
    queries: Annotated[list[Query], Field(min_length=1)]
    """Queries: each runs a model on the frames of a feed."""
    stills: str | None = None
    """Still images on which ``gemel merge`` judges queries without labels as well: a folder of images, a video, or
    ``package:NAME/path``. They should show what the cameras may see one day."""
    outputs: OutputList = Field(default=[])
    """Outputs that results are sent to when the bundle runs: files, videos, pictures, a broker, a web server."""

    _path: Path = PrivateAttr(default=Path("workload.yaml"))

    @property
    def path(self) -> Path:
        """File that a workload was read from."""
        return self._path

    @property
    def root(self) -> Path:
        """Folder of the workload file, from which the file's relative paths start."""
        return self._path.parent

    @field_validator("staleness", mode="before")
    @classmethod
    def _read_staleness(cls, value: Any, info: ValidationInfo) -> Any:
        """Read the staleness curves from the file that ``staleness`` names; a mapping stays as it is."""
        return meant.parse_staleness(value, (info.context or {}).get("root", Path()))

    @model_validator(mode="after")
    def _consistent(self) -> Workload:
        """Check that queries have unique names, name existing feeds, and ask for no more frames than feeds give."""
        seen: set[str] = set()
        for index, query in enumerate(self.queries):
            # :mod:`.explain` reads ``at`` to find the line of the mistake.
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
            fps = self.feeds[query.feed].fps
            if fps is not None and query.min_fps > fps:
                most = f"at most the {fps:g} frames per second of feed {query.feed}"
                context = {"at": ("queries", index, "min_fps"), "min_fps": f"{query.min_fps:g}", "most": most}
                raise PydanticCustomError("min_fps", "{min_fps} is not allowed: {most}", context)
        for name in self.staleness:
            if name not in seen:
                context = {
                    "at": ("staleness",),
                    "curve": repr(name),
                    "queries": ", ".join(query.name for query in self.queries),
                    # The value that is at fault is not in this file.
                    "secret": True,
                }
                message = "it has a curve of {curve}, which is not a query; queries: {queries}"
                raise PydanticCustomError("staleness", message, context)
        return self
