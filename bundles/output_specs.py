"""Outputs that a run sends results to, as the manifest states them: files of results, videos, pictures, a broker, a web
server.

Strings may have variables, ``${VAR}``, which are replaced when the bundle runs.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from string import Formatter
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from .addresses import parse_address, shown_server
from .value import Value

__all__ = [
    "KINDS",
    "MQTT_PORTS",
    "STDOUT",
    "WEB_PORTS",
    "JsonlSpec",
    "MqttSpec",
    "OutputSpec",
    "RotateSpec",
    "SamplesSpec",
    "SnapshotsSpec",
    "VideoSpec",
    "WebhookSpec",
    "check_header",
    "check_results_path",
    "check_status",
    "check_topic",
    "has_variables",
    "map_strings",
]

MQTT_PORTS = {"mqtt": 1883, "mqtts": 8883}
"""Scheme of a broker's URL -> port where the URL names none."""
WEB_PORTS = {"http": 80, "https": 443}
"""Scheme of a web server's URL -> port where the URL names none."""
STDOUT = "-"
"""Path in an output's settings that stands for the standard output of the run."""
_RESULT_SUFFIXES = (".jsonl", ".ndjson", ".json")
_VARIABLE = re.compile(r"\$\{[^}]*\}")
_TOPIC_FIELDS = ("feed", "query")
_HEADER_NAME = re.compile(r"[\w!#$%&'*+.^`|~-]{1,100}", re.ASCII)
_HEADER_TEXT = re.compile(r"[\t\x20-\x7e\xa0-\xff]*")
_OWN_HEADERS = ("connection", "content-length", "content-type", "host", "transfer-encoding")
_MOST_TOPIC = 500
"""Maximum number of characters of a topic template; brokers allow topics of 65535 bytes."""

_Bytes = Annotated[int, Field(ge=1)]
_Seconds = Annotated[float, Field(gt=0, le=1e9)]
_Text = Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^[^\x00]*$")]


def has_variables(text: str) -> bool:
    """Return whether a text has variables, ``${VAR}``. Such a text can be checked only after they were replaced."""
    return _VARIABLE.search(text) is not None


def check_results_path(path: str) -> str:
    """Check the path of a file of results.

    A bundle may come from anywhere, and its labels, which are written into results, may be any text. Appended to a
    script or a settings file, a label could become a command, so only files with certain suffixes are allowed.

    Raises:
        ValueError: the path is neither ``-`` nor the name of a file of JSON lines.
    """
    if path != STDOUT and not path.endswith(_RESULT_SUFFIXES) and not has_variables(path):
        raise ValueError(
            f"a file that ends with {', '.join(_RESULT_SUFFIXES)}, or - for the standard output, is expected"
        )
    return path


def check_topic(topic: str) -> str:
    """Check a template of MQTT topics.

    Raises:
        ValueError: the topic is empty or too long, or has a wildcard, or a field other than ``{feed}`` and ``{query}``.
    """
    known = ", ".join(f"{{{name}}}" for name in _TOPIC_FIELDS)
    plain = _VARIABLE.sub("x", topic)
    try:
        fields = [(name, spec, how) for _, name, spec, how in Formatter().parse(plain) if name is not None]
    except ValueError as error:
        raise ValueError(f"a topic with the fields {known} is expected; a brace is not closed") from error
    for name, spec, how in fields:
        if name not in _TOPIC_FIELDS or spec or how:
            raise ValueError(f"{{{name}}} is no field of a topic; allowed: {known}")
    if not plain or len(topic) > _MOST_TOPIC or plain.startswith("$") or re.search(r"[+#\x00-\x1f]", plain):
        raise ValueError("a topic such as gemel/{feed}/{query} is expected, without + and #, not beginning with $")
    return topic


def check_status(topic: str) -> str:
    """Check the MQTT topic under which a run publishes whether it is online.

    Raises:
        ValueError: the text is no valid topic, or has fields such as ``{feed}``.
    """
    if re.search(r"[{}]", _VARIABLE.sub("", check_topic(topic))):
        raise ValueError("a topic without fields, such as gemel/status, is expected")
    return topic


def check_header(name: str, text: str) -> None:
    """Check name and text of an HTTP header that a user adds to requests.

    Raises:
        ValueError: name or text has characters that a header line must not have, or gemel sets this header itself.
    """
    if not _HEADER_NAME.fullmatch(name) or not _HEADER_TEXT.fullmatch(text):
        raise ValueError("a name of letters, digits and -, and one line of text, are expected for each header")
    if name.lower() in _OWN_HEADERS:
        raise ValueError(f"the header {name} is set by gemel")


class RotateSpec(Value):
    """Size and age at which a file of results is renamed and a new file is begun, and how many old files are kept."""

    size: _Bytes | None = 100_000_000
    """Maximum bytes of a file of results, above which a new file is begun; no limit if None."""
    age: _Seconds | None = None
    """Age of a file of results in seconds after which a new file is begun; no limit if None."""
    keep: Annotated[int, Field(ge=0)] | None = 10
    """Number of old files of results that are kept; all if None."""


class JsonlSpec(Value):
    """File of results as JSON lines, or the standard output."""

    path: _Text
    rotate: RotateSpec = RotateSpec()

    @field_validator("path")
    @classmethod
    def _allowed(cls, value: str) -> str:
        return check_results_path(value)


class VideoSpec(Value):
    """Folder of annotated videos, one for each feed."""

    folder: _Text
    segment: _Seconds = 600.0
    """Seconds of annotated video in one file."""
    keep: _Bytes | None = 10_000_000_000
    """Maximum bytes of annotated videos in the folder, above which the oldest videos are deleted; no limit if None."""


class SnapshotsSpec(Value):
    """Folder of annotated pictures (JPEG) of events."""

    folder: _Text
    labels: tuple[str, ...] | None = None
    """Labels that count as an event when a query finds them. If None, every object and every text is an event."""
    cooldown: Annotated[float, Field(ge=0, le=1e9)] = 30.0
    """Seconds after an event in which the same label of the same query is not counted as another event."""
    keep: _Bytes | None = 1_000_000_000
    """Maximum bytes of annotated pictures in the folder, above which the oldest pictures are deleted; no limit if
    None."""


class SamplesSpec(Value):
    """Folder of samples for ``gemel drift``: frames (JPEG) with the answers that queries gave on them (JSON)."""

    folder: _Text
    every: _Seconds = 30.0
    """Seconds of media time between two samples of a query."""
    keep: _Bytes | None = 1_000_000_000
    """Maximum bytes of samples in the folder, above which the oldest samples are deleted; no limit if None."""
    age: _Seconds | None = 604_800.0
    """Seconds after which a sample is deleted; never if None."""
    quality: Annotated[int, Field(ge=1, le=100)] = 95
    """JPEG quality of frames in samples."""


class MqttSpec(Value):
    """MQTT broker, to which each result is published as a message."""

    url: _Text
    """URL of the MQTT broker: ``mqtt://HOST`` or ``mqtts://HOST``, with or without a port."""
    topic: _Text = "gemel/{feed}/{query}"
    status: _Text | None = "gemel/status"
    """MQTT topic that says whether the run is ``online`` or ``offline``, also after a kill; None for no such topic."""
    qos: Literal[0, 1, 2] = 1
    retain: bool = False
    """Whether the broker keeps the newest message of each topic for later subscribers."""
    username: _Text | None = None
    password: _Text | None = Field(default=None, repr=False)
    ca: _Text | None = None
    """File of certificates that the broker's certificate is checked against; the system's certificates if None."""
    certificate: _Text | None = None
    """File of the TLS certificate with which gemel identifies itself to the broker; None for no certificate."""
    key: _Text | None = None
    """File of the private key of gemel's own TLS certificate; None for no certificate."""

    @field_validator("topic")
    @classmethod
    def _topic(cls, value: str) -> str:
        return check_topic(value)

    @field_validator("status")
    @classmethod
    def _status(cls, value: str | None) -> str | None:
        return value if value is None else check_status(value)


class WebhookSpec(Value):
    """Web server, to which results are sent in batches by HTTP POST."""

    url: _Text
    batch: Annotated[int, Field(ge=1, le=10_000)] = 100
    """Maximum number of results in one request to a web server."""
    every: Annotated[float, Field(ge=0, le=3600)] = 1.0
    """Maximum seconds that a result waits, so that several results are sent to a web server in one request."""
    timeout: Annotated[float, Field(gt=0, le=600)] = 10.0
    """Seconds after which a request to a web server counts as failed if there is no answer."""
    headers: dict[str, str] = Field(default={}, repr=False)
    """HTTP headers that are added to each request to a web server: name -> text."""
    ca: _Text | None = None
    """File of certificates that the web server's certificate is checked against; the system's certificates if None."""

    @field_validator("headers")
    @classmethod
    def _allowed(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            check_header(name, text)
        return value


class OutputSpec(Value):
    """One output of a run. Only the field of its kind is set; for a kind of a newer gemel, all fields are None."""

    jsonl: JsonlSpec | None = None
    mqtt: MqttSpec | None = None
    webhook: WebhookSpec | None = None
    video: VideoSpec | None = None
    snapshots: SnapshotsSpec | None = None
    samples: SamplesSpec | None = None

    @model_validator(mode="after")
    def _one(self) -> OutputSpec:
        if sum(getattr(self, kind) is not None for kind in KINDS) > 1:
            raise ValueError("an output has one kind: give each kind an item of its own in the list")
        return self

    @property
    def kind(self) -> str | None:
        """Kind of an output of a run, such as ``mqtt``; None if a newer gemel wrote a kind that this gemel does not
        know."""
        return next((kind for kind in KINDS if getattr(self, kind) is not None), None)

    @property
    def target(self) -> str:
        """Destination of an output, for people: a file or folder, or scheme, host and port of a server."""
        spec = getattr(self, self.kind or "", None)
        if isinstance(spec, JsonlSpec):
            return "standard output" if spec.path == STDOUT else spec.path
        if isinstance(spec, VideoSpec | SnapshotsSpec | SamplesSpec):
            return spec.folder
        return shown_server(spec.url) if isinstance(spec, MqttSpec | WebhookSpec) else "a kind of a newer gemel"

    def check(self) -> None:
        """Check the URL or path of an output of a run, after the variables in it were replaced.

        Raises:
            ValueError: a URL or a path is not allowed. The message does not repeat a URL.
        """
        if self.mqtt is not None:
            parse_address(self.mqtt.url, MQTT_PORTS)
        if self.webhook is not None:
            parse_address(self.webhook.url, WEB_PORTS)
        if self.jsonl is not None:
            check_results_path(self.jsonl.path)


KINDS = tuple(OutputSpec.model_fields)
"""Kinds of outputs, which are the keys of an item in ``outputs`` of a workload."""


def map_strings(value: Any, change: Callable[[str], str]) -> Any:
    """Return a JSON value with ``change`` applied to every string in it, but not to keys."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: map_strings(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [map_strings(item, change) for item in value]
    return value
