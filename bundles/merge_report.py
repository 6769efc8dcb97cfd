"""merge.json: what was merged, what it saved, and the accuracies that were kept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import WorkloadError
from .manifest import Id

__all__ = ["MERGE_REPORT", "MergeReport", "QueryReport", "SharedTensor", "TrialReport", "UseReport", "read_report"]

MERGE_REPORT = "merge.json"
"""Its name beside the merged workload, and in a bundle."""

ByteCount = Annotated[int, Field(ge=0)]


class _Value(BaseModel):
    # Unknown fields are ignored: a newer version may add some.
    model_config = ConfigDict(frozen=True, extra="ignore")


class QueryReport(_Value):
    """Accuracies on the images that the search judged by, from 0 to 1."""

    model: str
    original: float
    reached: float
    relative: float
    """``reached / original``."""
    target: float
    """What ``relative`` must not fall below."""


class TrialReport(_Value):
    group: str
    models: tuple[str, ...]
    accepted: bool
    seconds: float
    samples: int
    """Images that models were trained on, summed over models."""
    accuracies: dict[str, float]
    ended: str
    saved_bytes: ByteCount
    """Of the workload, after the trial."""


class UseReport(_Value):
    query: str
    """The model's name: that of the first query that uses it."""
    parameter: str


class SharedTensor(_Value):
    tensor: Id
    """Hash of dtype, shape and bytes, as in a bundle."""
    bytes: ByteCount
    uses: Annotated[tuple[UseReport, ...], Field(min_length=2)]


class MergeReport(_Value):
    schema_version: str = "1.0"
    strategy: str
    seed: int
    original_bytes: ByteCount
    """What bundles of the original models hold, each alone: heads, biases and BatchNorm as compiled."""
    merged_bytes: ByteCount
    """The same of all models in one bundle: what ``gemel-compile`` writes."""
    layer_bytes: ByteCount
    """Weights of convolutions and linear layers alone, before merging."""
    saving: float
    """The part of ``original_bytes`` that is saved."""
    layer_saving: float
    """The part of ``layer_bytes`` that is saved."""
    potential: float
    """The part of ``original_bytes`` that sharing all that models could share with each other would save."""
    finished: bool
    """Whether the search came to its end; if not, ``--resume`` goes on with it."""
    queries: dict[str, QueryReport]
    trials: tuple[TrialReport, ...]
    shared: tuple[SharedTensor, ...]


def read_report(path: Path) -> MergeReport:
    """Read merge.json.

    Raises:
        WorkloadError: it is missing, no JSON, or of another form.
    """
    try:
        return MergeReport.model_validate_json(path.read_bytes())
    except OSError as error:
        raise WorkloadError(f"{path}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise WorkloadError(f"{path}: {field + ': ' if field else ''}{first['msg']}") from error
