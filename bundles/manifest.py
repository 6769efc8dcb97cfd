"""The manifest of a bundle: everything the runtime needs to know, as one validated value.

``gemel-compile`` writes it, ``gemel-run`` reads it; nothing else passes between them. Minor versions add
fields, which older readers ignore; a newer major version is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ..errors import BundleError, FeedError

__all__ = [
    "SCHEMA_VERSION",
    "CenterFaceDecode",
    "ClassificationDecode",
    "DecodeSpec",
    "DeviceSpec",
    "EmbeddingDecode",
    "FasterRcnnDecode",
    "FeedSpec",
    "FileSpec",
    "Id",
    "InputSpec",
    "Manifest",
    "ModelSpec",
    "Name",
    "Port",
    "Precision",
    "ProgramSpec",
    "QuerySpec",
    "SegmentSpec",
    "SsdDecode",
    "Stage",
    "TensorSpec",
    "YoloDecode",
    "YoloHead",
    "feeds_from",
    "parse_manifest",
]

SCHEMA_VERSION = "1.0"


# Names become parts of file names: none of them may be able to lead out of a folder.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=64)]
Id = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
DType = Annotated[str, Field(pattern=r"^(float(16|32|64)|u?int(8|16|32|64)|bool)$")]
Size = Annotated[int, Field(ge=0)]
Precision = Literal["fp32", "fp16", "int8"]


class _Value(BaseModel):
    # Unknown fields are ignored: a newer minor version may add some.
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class InputSpec(_Value):
    """How a frame becomes a model's input: resize, colour order, ``(pixel * scale - mean) / std``.

    ``fit="stretch"`` resizes to ``size`` and ignores the aspect ratio. ``fit="letterbox"`` keeps it: the frame
    lies at the top left and the rest is ``pad`` (in units of the normalised input).
    """

    size: tuple[int, int]
    """Height and width in pixels."""
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    scale: float = 1 / 255
    color: Literal["rgb", "bgr", "gray"] = "rgb"
    fit: Literal["stretch", "letterbox"] = "stretch"
    pad: float = 0.0


class ClassificationDecode(_Value):
    """Class scores ``[N, classes]`` in the first output: before a softmax, or probabilities."""

    kind: Literal["classification"] = "classification"
    activation: Literal["softmax", "none"] = "softmax"
    classes: int
    top_k: int = 5


class EmbeddingDecode(_Value):
    """A vector an image in the first output: ``[N, D]``, or ``[N, C, H, W]``, which is averaged over H and W."""

    kind: Literal["embedding"] = "embedding"
    normalize: bool = True
    """Divide by the Euclidean norm, so that a dot product is the cosine similarity."""


class _Detection(_Value):
    classes: int
    """Number of classes, the background not counted."""
    score_threshold: float = 0.05
    nms_threshold: float = 0.5
    max_detections: int = 100
    topk: int = 1000
    """Candidates of a class that go into NMS, best first: bounds the time that a bad model can take."""


class SsdDecode(_Detection):
    """One-stage detectors with fixed anchors: SSD, SSDLite, RetinaNet.

    Outputs ``logits [N, A, classes (+1)]`` and ``boxes [N, A, 4]`` as (dx, dy, dw, dh) relative to the anchors.
    """

    kind: Literal["ssd"] = "ssd"
    anchors: str
    """Tensor ``[A, 4]`` float32, x1 y1 x2 y2 in input pixels."""
    activation: Literal["softmax", "sigmoid"]
    background: bool
    """Class 0 of the logits is the background, which is never reported."""
    box_weights: tuple[float, float, float, float]
    """The divisors of (dx, dy, dw, dh)."""
    levels: tuple[int, ...] = ()
    """Anchors of each feature level; ``topk`` applies to each level, to all anchors at once when empty."""
    topk: int = 400
    """Candidates that go into NMS: a class (``per_class``) or a level."""
    per_class: bool = True


class FasterRcnnDecode(_Detection):
    """Two-stage detectors with a feature pyramid (torchvision's Faster R-CNN).

    Stage ``main`` gives for level i ``objectness_i [N, A, H, W]`` and ``deltas_i [N, 4A, H, W]`` (dx, dy, dw, dh
    undivided), and ``features_i [N, C, H, W]`` for the levels that RoIAlign takes its features from;
    stage ``roi`` (``features [1, C, H, W]``, ``rois [K, 4]`` in pixels of these features) gives
    ``pooled [K, C, 7, 7]``, for any one level: scaling the boxes outside makes it one program for all levels;
    stage ``head`` (``pooled``) gives ``logits [K, classes + 1]``, background first, and
    ``boxes [K, (classes + 1) * 4]``.
    """

    kind: Literal["faster-rcnn"] = "faster-rcnn"
    anchors: tuple[str, ...]
    """A tensor a level, ``[H * W * A, 4]`` float32, x1 y1 x2 y2 in input pixels."""
    roi_levels: tuple[int, ...]
    """Which of the levels RoIAlign takes its features from."""
    roi_scales: tuple[float, ...]
    """Feature pixels an input pixel, of each of ``roi_levels``: powers of two."""
    canonical_scale: int = 224
    canonical_level: int = 4
    pre_nms_topk: int = 1000
    post_nms_topk: int = 1000
    rpn_score_threshold: float = 0.0
    rpn_nms_threshold: float = 0.7
    min_size: float = 1e-3
    box_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)


class YoloHead(_Value):
    output: str
    stride: int
    anchors: tuple[tuple[float, float], ...]
    """Width and height in input pixels."""


class YoloDecode(_Detection):
    """YOLOv3-style heads: each output ``[N, A * (5 + classes), H, W]``, all values before the sigmoid."""

    kind: Literal["yolo"] = "yolo"
    heads: tuple[YoloHead, ...]


class CenterFaceDecode(_Detection):
    """CenterFace heads: heatmap ``[N, 1, H, W]``; scale and offset ``[N, 2, H, W]``, the vertical value first."""

    kind: Literal["centerface"] = "centerface"
    heatmap: str
    scale: str
    offset: str
    stride: int = 4


DecodeSpec = Annotated[
    ClassificationDecode | EmbeddingDecode | SsdDecode | FasterRcnnDecode | YoloDecode | CenterFaceDecode,
    Field(discriminator="kind"),
]


class Port(_Value):
    """A graph input or output. A dimension that is a string is free: the batch, or rows that vary."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class Stage(_Value):
    """One ONNX file of a model: its program, and the tensors that make the program this model."""

    file: str
    program: Id
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    weights: tuple[Id, ...]
    """Tensors in the program's order, which is the order of first use."""

    @field_validator("file")
    @classmethod
    def _inside(cls, value: str) -> str:
        return _flat(value)


class ModelSpec(_Value):
    stages: dict[Name, Stage]
    """``main`` takes the frame; two-stage detectors have more."""
    input: InputSpec
    decode: DecodeSpec
    mode: Literal["bound", "constant"] = "bound"
    """bound: weights are inputs of a shared program. constant: they are private to a session, which is faster
    where a kernel packs them (matrix products over many rows)."""
    precision: Precision = "fp32"
    """int8: kernels are int8 tensors, and QuantizeLinear and DequantizeLinear say what is rounded where; layers that
    could not bear it are float32. fp16: weights and what is computed are float16, inputs and outputs float32."""
    bytes: int
    """Bytes of the model's distinct tensors."""
    segments: tuple[str, ...]
    source: dict[str, Any] = {}
    """What the workload said of the model, for ``gemel check`` and for people."""


class ProgramSpec(_Value):
    models: tuple[str, ...]
    inputs: int
    """Number of weights that are bound."""


class TensorSpec(_Value):
    offset: Size
    length: Size
    dtype: DType
    shape: tuple[Size, ...]


class SegmentSpec(_Value):
    models: tuple[str, ...]
    offset: Size
    length: Size
    tensors: tuple[Id, ...]


class FeedSpec(_Value):
    """One camera or file. Relative paths have been made absolute; ``package:`` sources stay as they are."""

    source: str
    fps: float | None = None
    loop: bool = False


class QuerySpec(_Value):
    feed: str
    model: str
    task: Literal["classification", "detection", "embedding"]
    labels: tuple[str, ...] | None = None
    threshold: float | None = None
    """Results below this score are not reported; the decoder's own threshold when left out."""
    target: float = 0.95


class DeviceSpec(_Value):
    backend: str = "ort-cpu"
    memory: str | int = "all"


class FileSpec(_Value):
    bytes: int
    sha256: str


class Manifest(_Value):
    schema_version: str = SCHEMA_VERSION
    producer: dict[str, str]
    device: DeviceSpec
    sla_ms: float
    feeds: dict[Name, FeedSpec]
    queries: dict[Name, QuerySpec]
    models: dict[Name, ModelSpec]
    programs: dict[Id, ProgramSpec]
    tensors: dict[Id, TensorSpec]
    """By hash of dtype, shape and bytes."""
    segments: dict[Name, SegmentSpec]
    blob: str = "weights.bin"
    files: dict[str, FileSpec]
    """Every file of the bundle but the manifest."""

    @field_validator("blob")
    @classmethod
    def _blob_inside(cls, value: str) -> str:
        return _flat(value)

    @field_validator("files")
    @classmethod
    def _files_inside(cls, value: dict[str, FileSpec]) -> dict[str, FileSpec]:
        for name in value:
            _flat(name)
        return value


def _flat(name: str) -> str:
    """A bundle is flat: a name that could lead out of it is refused before anything is opened."""
    plain = name.isprintable() and "\\" not in name and len(name.encode()) < 256
    if name in ("", ".", "..") or PurePosixPath(name).name != name or not plain:
        raise ValueError(f"{name!r} is not a plain file name; files of a bundle lie directly in its folder")
    return name


def parse_manifest(document: Mapping[str, Any], where: str) -> Manifest:
    """Validate a decoded manifest.json.

    Args:
        document: the JSON object.
        where: path named in errors.

    Raises:
        BundleError: a newer major version, a missing or malformed field, a path that leaves the bundle.
    """
    version = document.get("schema_version")
    major = str(version).partition(".")[0]
    if not re.fullmatch("[0-9]{1,9}", major):
        raise BundleError(f"{where}: schema_version is {version!r}; expected a version such as {SCHEMA_VERSION!r}")
    if int(major) > int(SCHEMA_VERSION.partition(".")[0]):
        raise BundleError(
            f"{where}: schema_version {version} is newer than {SCHEMA_VERSION}, which this gemel reads; upgrade gemel"
        )
    try:
        return Manifest.model_validate(document)
    except ValidationError as error:
        raise BundleError(f"{where}: {problem(error)}") from error


def problem(error: ValidationError) -> str:
    """The first thing that is wrong, as part of a one-line message: the field, and what is expected of it."""
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"


def feeds_from(feeds: Mapping[str, FeedSpec], sources: Mapping[str, str]) -> dict[str, FeedSpec]:
    """A bundle's feeds, some of which read from elsewhere.

    Args:
        feeds: the bundle's.
        sources: feed name to the source that replaces the bundle's.

    Raises:
        FeedError: ``sources`` names a feed that does not exist.
    """
    for name in sources:
        if name not in feeds:
            raise FeedError(f"feed {name!r} is not in the bundle; its feeds are {', '.join(feeds)}")
    return {name: spec.model_copy(update={"source": sources.get(name, spec.source)}) for name, spec in feeds.items()}
