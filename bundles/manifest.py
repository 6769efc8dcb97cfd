"""The manifest of a bundle: everything the runtime needs to know, as one validated value.

``gemel-compile`` writes the manifest and ``gemel-run`` reads it; nothing else passes between them. A minor version
adds fields, which older readers ignore. A newer major version is refused. A bundle states the oldest version whose
readers can run it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator

from ..errors import BundleError
from .decode_specs import DecodeSpec
from .form_specs import FormSpec
from .goals import ObjectiveName, QueryGoals
from .input_spec import InputSpec
from .output_specs import OutputSpec
from .stage_specs import Id, Port, Sha256, Stage, StemSpec, flat_name
from .value import Value, problem

__all__ = [
    "FORMS_VERSION",
    "MOST_PIXELS",
    "PLAIN_VERSION",
    "DeviceSpec",
    "FeedSpec",
    "FileSpec",
    "FormSpec",
    "Hardware",
    "Id",
    "InputSpec",
    "Manifest",
    "ModelSpec",
    "Name",
    "OriginalSpec",
    "OriginalsSpec",
    "Port",
    "Precision",
    "ProgramSpec",
    "QuerySpec",
    "SegmentSpec",
    "Stage",
    "StemSpec",
    "TensorSpec",
    "Transport",
    "parse_manifest",
]

PLAIN_VERSION = "1.0"
"""Version of the manifest of a bundle that stores every weight as it is."""
FORMS_VERSION = "2.0"
"""Version of the manifest of a bundle with kernels that are computed from stored tensors, and the newest version.

Earlier readers would take such a kernel for a tensor that is missing, hence the major number. Every version up to the
same major number is read."""

MOST_PIXELS = 7680 * 4320
"""Maximum number of pixels of a model's input: those of an 8K frame."""
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=64)]
"""Name of a feed, query, model or stage. Names become parts of file names, so none may lead out of a folder."""
DType = Annotated[str, Field(pattern=r"^(float(16|32|64)|u?int(8|16|32|64)|bool)$")]
"""Name of an array's element type, as NumPy calls it."""
Size = Annotated[int, Field(ge=0)]
"""Type of sizes in the manifest, 0 or more: a number of bytes, or of elements along one axis of a tensor."""
Precision = Literal["fp32", "fp16", "int8"]
Transport = Literal["auto", "tcp", "udp"]
"""Transport of RTSP. ``auto`` is TCP, or UDP where the camera offers no TCP."""
Hardware = Literal["none", "auto", "cuda", "vaapi", "v4l2"]
"""Device that decodes videos. ``none`` is the processor; ``auto`` is a device if one is there."""


class ModelSpec(Value):
    """Entry of the manifest for one distinct model, which one or more queries use."""

    stages: dict[Name, Stage]
    """Stages of a model by name. ``main`` takes the frame; two-stage detectors have more stages."""
    input: InputSpec
    decode: DecodeSpec
    mode: Literal["bound", "constant"] = "bound"
    """Way in which a model gets its weights. ``bound``: weights are inputs of a shared program. ``constant``: weights
    are constants of a session of this model alone, which is faster where a kernel packs its weights (matrix products
    over many rows)."""
    precision: Precision = "fp32"
    """Precision of a model. ``int8``: kernels are int8 tensors, and QuantizeLinear and DequantizeLinear nodes say which
    values are rounded; layers that lost too much accuracy stay float32. ``fp16``: weights and computation are float16,
    inputs and outputs float32."""
    bytes: int
    """Bytes of a model's distinct weights, computed kernels included, and of its anchors."""
    segments: tuple[str, ...]
    """Names of the segments that must be resident before a model can run."""
    stem: StemSpec | None = None
    """Parts of ``main`` of which the first can run once for several models; None if no model of the same feed begins
    with the same layers."""
    source: dict[str, Any] = Field(default={})
    """Copy of the workload's ``model`` entry (factory or ONNX file, weights, input) that was compiled."""

    @property
    def weights(self) -> tuple[str, ...]:
        """Weights of all stages of a model, in order; a weight that two stages use stands there twice."""
        return tuple(weight for stage in self.stages.values() for weight in stage.weights)

    @property
    def anchors(self) -> tuple[str, ...]:
        """Ids of the tensors that a model's decoder needs."""
        found: str | tuple[str, ...] = getattr(self.decode, "anchors", ())
        return (found,) if isinstance(found, str) else found


class OriginalSpec(Value):
    """Weights and programs of a model that lie in the bundle and do not run: the original ones, or the merged ones."""

    model: ModelSpec
    """Model that does not run now, whose files and tensors are in the bundle. It has no segments, so it is never
    loaded."""
    reverted: bool = False
    """Whether the model that runs now is the original one. ``model`` is then the merged one."""


class OriginalsSpec(Value):
    """Entry of the manifest for the original weights of merged models."""

    models: dict[Name, OriginalSpec] = Field(default={})
    """Name of a model -> its other weights. Models that the merge did not change are left out."""
    forms: dict[Id, FormSpec] = Field(default={})
    """Kernels that are computed, by id, for the models that do not run."""
    at: str | None = None
    """URL or folder of the delta that adds the original weights; None if the bundle always has them."""
    merged: Sha256 | None = None
    """Id of the bundle that this one becomes when all reverts are undone; None if no model is reverted."""


class ProgramSpec(Value):
    """Entry of the manifest for one program: a graph without weights, named by the hash of its canonical form."""

    models: tuple[str, ...]
    """Names of the models that run a program."""
    inputs: int
    """Number of weights that are inputs of a program."""


class TensorSpec(Value):
    """Position and shape of one distinct weight array in the blob."""

    offset: Size
    """Bytes from the start of the blob to a tensor."""
    length: Size
    """Length of a tensor in bytes."""
    dtype: DType
    shape: tuple[Size, ...]


class SegmentSpec(Value):
    """Tensors used by exactly the same set of models, contiguous in the blob; the unit of residency and swapping."""

    models: tuple[str, ...]
    offset: Size
    """Bytes from the start of the blob to a segment."""
    length: Size
    """Length of a segment in bytes, without the padding behind the last tensor."""
    tensors: tuple[Id, ...]


class FeedSpec(Value):
    """Feed: one camera or file. Relative paths have been made absolute; ``package:`` sources stay as they are."""

    source: str
    fps: float | None = None
    """Frames per second of a feed that queries see; the source's own rate if None."""
    loop: bool = False
    """Whether a feed's recording starts again when it ends."""
    transport: Transport = "auto"
    timeout: float = Field(default=5.0, gt=0, le=3600)
    """Seconds without an answer or a picture after which a camera counts as silent and is opened again."""
    hardware: Hardware = "none"


class QuerySpec(QueryGoals):
    """Query: a feed, the model that runs on the feed's frames, the task, and goals of plans."""

    feed: str
    model: str
    task: Literal["classification", "detection", "embedding", "segmentation", "pose", "ocr", "raw"]
    labels: tuple[str, ...] | None = None
    """Names of the classes of a query's model, in the order of the model's outputs, the background not counted."""
    classes: tuple[str, ...] | None = None
    """Labels or numbers of the classes that a query reports; all classes if None."""
    threshold: float | None = None
    """Score below which a query's results are not reported; the decoder's own threshold if None."""
    target: float = 0.95
    """Accuracy that a query must keep, relative to the unmerged model, from 0 to 1."""


class DeviceSpec(Value):
    """Device settings of the workload, which flags of ``gemel-run`` override."""

    backend: str = "ort-cpu"
    memory: str | int = "all"
    """Memory budget for weights: bytes, or a setting of :func:`gemel.bundles.budget.parse_memory`."""


class FileSpec(Value):
    """Size and SHA-256 (hex) of one file of a bundle."""

    bytes: int
    sha256: str


class Manifest(Value):
    """Content of manifest.json, the file that describes a bundle."""

    schema_version: str = PLAIN_VERSION
    producer: dict[str, str]
    """Name and version of the program that wrote the bundle."""
    device: DeviceSpec
    sla_ms: float
    """Milliseconds after a frame's arrival by which its result is due, for queries without an SLA of their own."""
    objective: ObjectiveName = "max-min"
    """Name of the objective of plans, which ``gemel-run --objective`` replaces."""
    feeds: dict[Name, FeedSpec]
    queries: dict[Name, QuerySpec]
    models: dict[Name, ModelSpec]
    programs: dict[Id, ProgramSpec]
    tensors: dict[Id, TensorSpec]
    """Tensors of a bundle by id, which is the hash of a tensor's dtype, shape and bytes."""
    forms: dict[Id, FormSpec] = Field(default={})
    """Kernels that are computed from tensors when a model is loaded, by the id that the kernel would have as a
    tensor."""
    segments: dict[Name, SegmentSpec]
    outputs: tuple[OutputSpec, ...] = ()
    """Outputs that a run sends its results to, in the order in which the workload lists them."""
    originals: OriginalsSpec | None = None
    """Original weights of merged models; None if the bundle neither has them nor knows where they are."""
    blob: str = "weights.bin"
    files: dict[str, FileSpec]
    """Name of every file of a bundle except the manifest -> size and SHA-256 of the file."""

    def bytes_of(self, weight: str) -> int:
        """Return the bytes that a weight takes in memory, whether it is a tensor or a computed kernel."""
        form = self.forms.get(weight)
        return self.tensors[weight].length if form is None else form.bytes

    @property
    def reverted(self) -> frozenset[str]:
        """Names of the models that run with their original weights, which the merge had replaced."""
        known = {} if self.originals is None else self.originals.models
        return frozenset(name for name, other in known.items() if other.reverted)

    @property
    def resident(self) -> frozenset[str]:
        """Ids of the tensors that models which run use. All others lie in no segment and are never loaded."""
        return frozenset(tensor for segment in self.segments.values() for tensor in segment.tensors)

    def sla_of(self, query: str) -> float:
        """Return the milliseconds after a frame's arrival by which a query's result is due."""
        own = self.queries[query].sla_ms
        return self.sla_ms if own is None else own

    @field_validator("blob")
    @classmethod
    def _blob_inside(cls, value: str) -> str:
        return flat_name(value)

    @field_validator("files")
    @classmethod
    def _files_inside(cls, value: dict[str, FileSpec]) -> dict[str, FileSpec]:
        for name in value:
            flat_name(name)
        return value


def parse_manifest(document: Mapping[str, Any], where: str) -> Manifest:
    """Validate a decoded manifest.json.

    Args:
        document: decoded JSON object.
        where: path of the manifest, for error messages.

    Raises:
        BundleError: the manifest has a newer major version, lacks a field or has a malformed one, or names a path that
            leaves the bundle.
    """
    version = document.get("schema_version")
    major = str(version).partition(".")[0]
    if not re.fullmatch("[0-9]{1,9}", major):
        raise BundleError(f"{where}: schema_version is {version!r}; expected a version such as {FORMS_VERSION!r}")
    if int(major) > int(FORMS_VERSION.partition(".")[0]):
        raise BundleError(
            f"{where}: schema_version {version} is newer than {FORMS_VERSION}, which this gemel reads; upgrade gemel"
        )
    try:
        return Manifest.model_validate(document)
    except ValidationError as error:
        raise BundleError(f"{where}: {problem(error)}") from error
