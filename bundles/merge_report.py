"""Schema and reader of merge.json: tensors that ``gemel merge`` merged, bytes saved, and accuracies afterwards.

This is the only schema of the file and the only code that reads it. The file lies in the folder of the merged
workload, and ``gemel-compile`` copies it into the bundle. :func:`read_report` refuses a damaged file.
:func:`read_merge` returns None for it, because a bundle runs without the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, field_validator

from ..errors import WorkloadError
from .codes import Bits
from .manifest import Id
from .reader import Bundle
from .stage_specs import flat_name
from .value import Value, problem

__all__ = [
    "MERGE_REPORT",
    "FormsReport",
    "IntervalReport",
    "LayerReport",
    "MergeReport",
    "QueryReport",
    "SavingParts",
    "SharedTensor",
    "TrialReport",
    "UseReport",
    "read_merge",
    "read_report",
]

MERGE_REPORT = "merge.json"
"""Name of the merge report, in the folder of the merged workload and in a bundle."""

ByteCount = Annotated[int, Field(ge=0)]


class IntervalReport(Value):
    """Relative accuracy of one query on some images that chose nothing: accuracy divided by the original model's."""

    images: Annotated[int, Field(ge=0)]
    """Number of images that show something to judge by; 0 for a query whose weights did not change."""
    value: float
    low: float
    """Lower end of a relative accuracy: a one-sided bound at 95 % of a paired bootstrap over images."""
    high: float
    """Upper end of a relative accuracy: a one-sided bound at 95 % of a paired bootstrap over images."""


class QueryReport(Value):
    """Accuracies of one query before and after merging, from 0 to 1, on images that chose nothing in the search."""

    model: str
    original: float
    """Accuracy of a query before the merge, from 0 to 1."""
    reached: float
    """Accuracy of a query after the merge, from 0 to 1."""
    relative: float
    """Accuracy of a query after the merge, divided by the query's accuracy before the merge."""
    target: float
    """Minimum that a query allows for its accuracy after the merge, divided by its accuracy before the merge."""
    own: IntervalReport | None = None
    """Relative accuracy of a query on images of its own data or feed. None in files of version 1.0."""
    mix: IntervalReport | None = None
    """Agreement of a query's answers with the original model's on frames of other feeds and stills; None for a query
    with labels, and where the original finds nothing on them."""
    scores: IntervalReport | None = None
    """Agreement of a query's raw scores with the original model's on frames of other feeds and stills; None for a query
    with labels."""
    samples: IntervalReport | None = None
    """Agreement of a query's answers with the original model's on frames that boxes have sampled; None without samples,
    and where the original finds nothing on them."""
    notes: tuple[str, ...] = ()
    """Lines that say what limits a query's merge, and what would help."""


class TrialReport(Value):
    """One trial of the search of ``gemel merge``: a group that was merged, and whether the result was kept."""

    group: str
    models: tuple[str, ...]
    accepted: bool
    seconds: float
    samples: int
    """Number of images that models were trained on in one trial of a merge, summed over models."""
    accuracies: dict[str, float]
    """Query -> accuracy after one trial of a merge, from 0 to 1."""
    ended: str
    """Reason why the training of one trial of a merge ended."""
    saved_bytes: ByteCount
    """Bytes that merging saves in the whole workload after one trial of a merge."""


class UseReport(Value):
    """One parameter of one model that holds a shared tensor."""

    query: str
    """Name of the model that has a parameter with a shared tensor: the name of the first query that uses the model."""
    parameter: str


class SharedTensor(Value):
    """One tensor that several parameters of merged models hold."""

    tensor: Id
    """Id of a shared tensor, as in a bundle: a hash of dtype, shape and bytes."""
    bytes: ByteCount
    uses: Annotated[tuple[UseReport, ...], Field(min_length=2)]


class LayerReport(Value):
    """Form of one parameter of one model: small integers times a scale, perhaps beside a base, see :mod:`.codes`."""

    model: str
    """Name of the model: the name of the first query that uses the model."""
    parameter: str
    index: ByteCount
    """Number ``n`` of the layer in the file of the forms, which has tensors ``n.codes`` and ``n.scale``."""
    shape: tuple[Annotated[int, Field(ge=1)], ...]
    """Shape of the parameter."""
    kind: Literal["difference", "coded"]
    """``coded``: the parameter is the codes times the scale. ``difference``: the base is added."""
    bits: Bits
    """Number of bits of one code."""
    base: str | None = None
    """``base.`` and the id of a float32 base's tensor. The tensor is in the file of the forms under this name, or a
    model's parameter holds it. None for a base in codes, and for a coded parameter."""
    base_index: ByteCount | None = None
    """Number ``n`` of a base in codes: the file of the forms has its tensors ``n.codes``, with codes of 8 bits, and
    ``n.scale``. None for a float32 base, and for a coded parameter."""


class FormsReport(Value):
    """Parameters of merged models that are kept as codes, and the file that has the codes."""

    file: str
    """Name of the safetensors file, in the folder of merge.json."""
    layers: tuple[LayerReport, ...]

    @field_validator("file")
    @classmethod
    def _inside(cls, value: str) -> str:
        return flat_name(value)


class SavingParts(Value):
    """Parts of what a merge saves, as fractions of the bytes of convolutions and linear layers, from 0 to 1."""

    sharing: float
    """Fraction that is saved by sharing: tensors that several layers hold, and differences to common bases, as if these
    were float32."""
    compression: float
    """Fraction that is saved by keeping tensors, bases included, as codes of their own, on top of sharing."""
    sharing_alone: float
    """Largest fraction that the search found without codes of tensors' own, with every query at its target."""
    compression_alone: float | None
    """Fraction that codes of the original models' own weights would save at least, with every query at its target; None
    if the search did not come to measure it. Mixtures of bits, which save more, are only looked at with compression."""


class MergeReport(Value):
    """Content of merge.json. A field added in a later version needs a default, so that older files stay readable."""

    schema_version: str = "1.2"
    strategy: str
    seed: int
    original_bytes: ByteCount
    """Bytes of weights in one bundle of all original models. Tensors that they have in common count once."""
    merged_bytes: ByteCount
    """Bytes of weights in one bundle of all merged models, as ``gemel-compile`` writes it."""
    layer_bytes: ByteCount
    """Bytes of the weights of convolutions and linear layers only, before merging."""
    saving: float
    """Fraction of the original models' bytes of weights (``original_bytes``) that merging saves, from 0 to 1."""
    layer_saving: float
    """Fraction of the bytes of convolutions and linear layers (``layer_bytes``) that merging saves, from 0 to 1."""
    potential: float
    """Fraction of the original models' bytes of weights (``original_bytes``), from 0 to 1, that would be saved if
    models shared all layers that they can."""
    finished: bool
    """Whether the search for groups to merge was completed; ``--resume`` continues a search that was not."""
    queries: dict[str, QueryReport]
    trials: tuple[TrialReport, ...]
    shared: tuple[SharedTensor, ...]
    forms: FormsReport | None = None
    """Parameters that are kept as codes; None if there are none."""
    parts: SavingParts | None = None
    """Parts of the saving; None in files of earlier versions."""
    left: dict[str, str] = Field(default={})
    """Model -> reason, for models that keep their weights because they cannot be retrained or judged."""


def read_report(path: Path) -> MergeReport:
    """Read a merge report, which ``gemel merge`` writes to merge.json.

    Raises:
        WorkloadError: the file is missing, is not JSON, or does not match the schema.
    """
    try:
        return MergeReport.model_validate_json(path.read_bytes())
    except OSError as error:
        raise WorkloadError(f"{path}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise WorkloadError(f"{path}: {problem(error)}") from error


def read_merge(bundle: Bundle) -> MergeReport | None:
    """Return the merge report of a bundle; None if merge.json is missing or damaged, because bundles run without it."""
    if MERGE_REPORT not in bundle.manifest.files:
        return None
    try:
        return read_report(bundle.file(MERGE_REPORT))
    except WorkloadError:
        return None
