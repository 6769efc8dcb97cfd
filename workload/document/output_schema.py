"""Schema of the key ``outputs`` in workload.yaml, and in a file for ``gemel-run --outputs``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from ...bundles.output_specs import KINDS, MQTT_PORTS, WEB_PORTS, OutputSpec
from . import meant, output_meant
from .model_schema import NAMES_SCHEMA
from .strict import Strict

__all__ = [
    "Jsonl",
    "Mqtt",
    "Output",
    "OutputList",
    "OutputsFile",
    "Rotate",
    "Samples",
    "Snapshots",
    "Video",
    "Webhook",
    "output_specs",
]

_SIZE = {"anyOf": [{"type": "integer", "minimum": 1000}, {"type": "string"}], "examples": ["100MB", "10GiB", "all"]}
_PERIOD = {"anyOf": [{"type": "number", "minimum": 0}, {"type": "string"}], "examples": ["10s", "10m", "1h", "7d"]}
_TEXT = {"type": "string"}
_Bytes = Annotated[int | None, BeforeValidator(output_meant.parse_bytes), WithJsonSchema(_SIZE)]
_Period = Annotated[float, BeforeValidator(output_meant.parse_period), Field(gt=0, le=1e9), WithJsonSchema(_PERIOD)]
_Age = Annotated[
    Annotated[float, Field(gt=0, le=1e9)] | None, BeforeValidator(output_meant.parse_age), WithJsonSchema(_PERIOD)
]
_Folder = Annotated[str, BeforeValidator(output_meant.parse_folder), WithJsonSchema(_TEXT)]


class Rotate(Strict):
    """Size and age at which a file of results is renamed and a new file is begun."""

    size: _Bytes = 100_000_000
    """Size of a file of results at which a new file is begun, such as ``100MB``; ``all`` for no limit."""
    age: _Period | None = None
    """Age of a file of results at which a new file is begun, such as ``1d``; no limit if left out."""
    keep: Annotated[int, Field(ge=0)] | Literal["all"] = 10
    """Number of old files of results that are kept; ``all`` for no limit."""


class Jsonl(Strict):
    """File of results as JSON lines."""

    path: Annotated[str, BeforeValidator(output_meant.parse_path), WithJsonSchema(_TEXT)]
    """File that results are appended to; ``-`` for the standard output."""
    rotate: Annotated[
        Rotate,
        BeforeValidator(output_meant.parse_rotate),
        WithJsonSchema({"anyOf": [{"type": ["string", "object", "boolean"]}], "examples": ["100MB", "1d", "none"]}),
    ] = Rotate()
    """Size (``100MB``) or age (``1d``) at which a new file of results is begun, or a mapping with ``size``, ``age`` and
    ``keep``; ``none`` for never."""

    @classmethod
    def _meant(cls, value: Any) -> str:
        return f"path: {value}" if isinstance(value, str) else ""


class Video(Strict):
    """Folder of annotated videos, one for each feed."""

    folder: _Folder
    """Folder that annotated videos are written to."""
    segment: _Period = 600.0
    """Length of the annotated video in one file, such as ``10m``."""
    keep: _Bytes = 10_000_000_000
    """Size of all annotated videos in the folder, above which the oldest videos are deleted; ``all`` for no limit."""

    @classmethod
    def _meant(cls, value: Any) -> str:
        return f"folder: {value}" if isinstance(value, str) else ""


class Snapshots(Strict):
    """Folder of annotated pictures of events."""

    folder: _Folder
    """Folder that annotated pictures of events are written to."""
    labels: (
        Annotated[list[str], BeforeValidator(meant.parse_names), Field(min_length=1), WithJsonSchema(NAMES_SCHEMA)]
        | None
    ) = None
    """Labels that count as an event when a query finds them. If left out, every object and every text is an event."""
    cooldown: Annotated[
        float, BeforeValidator(output_meant.parse_period), Field(ge=0, le=1e9), WithJsonSchema(_PERIOD)
    ] = 30.0
    """Time after an event in which the same label of the same query is not counted as another event."""
    keep: _Bytes = 1_000_000_000
    """Size of all annotated pictures in the folder, above which the oldest pictures are deleted; ``all`` for no
    limit."""

    @classmethod
    def _meant(cls, value: Any) -> str:
        return f"folder: {value}" if isinstance(value, str) else ""


class Samples(Strict):
    """Folder of samples: frames with the answers given, for ``gemel drift``."""

    folder: _Folder
    """Folder that frames with their answers are written to."""
    every: _Period = 30.0
    """Media time between two samples of a query, such as ``30s``."""
    keep: _Bytes = 1_000_000_000
    """Size of all samples in the folder, above which the oldest are deleted; ``all`` for no limit."""
    age: _Age = 604_800.0
    """Age at which a sample is deleted, such as ``7d``; ``all`` for no limit."""
    quality: Annotated[int, Field(ge=1, le=100)] = 95
    """JPEG quality of frames in samples, from 1 to 100."""

    @classmethod
    def _meant(cls, value: Any) -> str:
        return f"folder: {value}" if isinstance(value, str) else ""


class Mqtt(Strict):
    """MQTT broker that each result is published to."""

    secret: ClassVar[bool] = True
    url: Annotated[
        str, BeforeValidator(lambda value: output_meant.parse_server(value, MQTT_PORTS)), WithJsonSchema(_TEXT)
    ]
    """Address of the MQTT broker: ``mqtt://HOST``, or ``mqtts://HOST`` with TLS, with or without a port."""
    topic: Annotated[str, BeforeValidator(output_meant.parse_topic), WithJsonSchema(_TEXT)] = "gemel/{feed}/{query}"
    """MQTT topic that a result is published under, with the fields ``{feed}`` and ``{query}``."""
    status: Annotated[str | None, BeforeValidator(output_meant.parse_status), WithJsonSchema(_TEXT)] = "gemel/status"
    """MQTT topic that says whether the run is ``online`` or ``offline``; ``none`` for no such topic."""
    qos: Literal[0, 1, 2] = 1
    """Quality of service of MQTT messages: 0 at most once, 1 at least once, 2 exactly once."""
    retain: bool = False
    """Whether the broker keeps the newest result of each topic for later subscribers."""
    username: str | None = None
    """User name to log in to the MQTT broker with."""
    password: Annotated[str, BeforeValidator(output_meant.parse_secret), WithJsonSchema(_TEXT)] | None = None
    """Environment variable that holds the password for the MQTT broker, such as ``${GEMEL_MQTT_PASSWORD}``."""
    ca: str | None = None
    """File of certificates that the broker's certificate is checked against; the system's certificates if left out."""
    certificate: str | None = None
    """File of the TLS certificate with which this machine identifies itself to the broker; none if left out."""
    key: str | None = None
    """File of the private key of this machine's TLS certificate; none if left out."""

    @classmethod
    def _meant(cls, value: Any) -> str:
        return "url: ..." if isinstance(value, str) else ""


class Webhook(Strict):
    """Web server that results are sent to in batches."""

    secret: ClassVar[bool] = True
    url: Annotated[
        str, BeforeValidator(lambda value: output_meant.parse_server(value, WEB_PORTS)), WithJsonSchema(_TEXT)
    ]
    """Address that batches of results are posted to: ``https://HOST/path`` or ``http://HOST/path``."""
    batch: Annotated[int, Field(ge=1, le=10_000)] = 100
    """Maximum number of results in one request to the web server."""
    every: Annotated[
        float, BeforeValidator(output_meant.parse_period), Field(ge=0, le=3600), WithJsonSchema(_PERIOD)
    ] = 1.0
    """Maximum time that a result waits, so that several results are sent to the web server in one request."""
    timeout: Annotated[
        float, BeforeValidator(output_meant.parse_period), Field(gt=0, le=600), WithJsonSchema(_PERIOD)
    ] = 10.0
    """Time after which a request to the web server counts as failed and is repeated if there is no answer."""
    headers: Annotated[dict[str, str], BeforeValidator(output_meant.parse_headers)] = Field(default={})
    """HTTP headers of each request to the web server, such as ``{Authorization: "Bearer ${GEMEL_TOKEN}"}``."""
    ca: str | None = None
    """File of certificates that the web server's certificate is checked against; the system's certificates if left
    out."""

    @classmethod
    def _meant(cls, value: Any) -> str:
        return "url: ..." if isinstance(value, str) else ""


class Output(Strict):
    """One output of a run: a mapping with one key, which is its kind."""

    secret: ClassVar[bool] = True
    jsonl: Jsonl | None = None
    """File of results, or the standard output."""
    mqtt: Mqtt | None = None
    """MQTT broker that results are published to."""
    webhook: Webhook | None = None
    """Web server that results are posted to."""
    video: Video | None = None
    """Folder of annotated videos."""
    snapshots: Snapshots | None = None
    """Folder of pictures of events."""
    samples: Samples | None = None
    """Folder of frames with the answers given."""

    @classmethod
    def _meant(cls, value: Any) -> str:
        if not isinstance(value, str):
            return ""
        if value in KINDS:
            return f"{value}: {{...}}"
        scheme = value.partition("://")[0]
        kind = "mqtt" if scheme in MQTT_PORTS else "webhook" if scheme in WEB_PORTS else None
        return f"{kind}: {{url: ...}}" if kind else "jsonl: {path: ...}" if value.endswith(".jsonl") else ""

    @model_validator(mode="after")
    def _one(self) -> Output:
        """Check that an output of a run has exactly one kind."""
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            several = f"give {' and '.join(given)} an item each, with - in front" if given else "none is given"
            raise meant.mistake(f"one of {', '.join(KINDS)} is expected; {several}", secret=True)
        return self


def _distinct(outputs: list[Output]) -> list[Output]:
    """Check that no two outputs of a run write to the same file."""
    seen: dict[str, int] = {}
    for index, output in enumerate(outputs):
        if output.jsonl is not None and seen.setdefault(output.jsonl.path, index) != index:
            first = f"outputs[{seen[output.jsonl.path]}] writes to the same file"
            context: dict[str, Any] = {"at": ("outputs", index, "jsonl", "path"), "message": first}
            raise PydanticCustomError("mistake", "{message}", context)
    return outputs


OutputList = Annotated[list[Output], AfterValidator(_distinct)]
"""Type of the value of the key ``outputs``: a list of outputs, of which no two write to the same file."""


class OutputsFile(Strict):
    """Content of a file for ``gemel-run --outputs``: outputs that results are sent to."""

    outputs: OutputList
    """Outputs that replace those of the bundle."""


def output_specs(outputs: Sequence[Output]) -> tuple[OutputSpec, ...]:
    """Convert the outputs of a workload to the form that the manifest has."""
    return tuple(OutputSpec.model_validate(_plain(output.model_dump(exclude_unset=True))) for output in outputs)


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of an output with None in place of ``all``, which stands for no limit."""
    return {
        key: _plain(item) if isinstance(item, dict) else None if key == "keep" and item == "all" else item
        for key, item in value.items()
    }
