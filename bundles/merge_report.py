"""merge.json: what ``gemel merge`` merged, what that saved, and the accuracies that were kept.

This is the only schema of the file and the only code that reads it. The file lies beside the merged workload, and
``gemel-compile`` copies it into the bundle. :func:`read_report` refuses a damaged file. :func:`read_merge` does not,
because a bundle runs without the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from ..errors import WorkloadError
from .manifest import Id
from .reader import Bundle
from .value import Value, problem

__all__ = [
    "MERGE_REPORT",
    "MergeReport",
    "QueryReport",
    "SharedTensor",
    "TrialReport",
    "UseReport",
    "read_merge",
    "read_report",
]

MERGE_REPORT = "merge.json"
"""Name of the file beside the merged workload, and in a bundle."""

ByteCount = Annotated[int, Field(ge=0)]


class QueryReport(Value):
    """Accuracies of one query on the images that the search judged by, from 0 to 1."""

    model: str
    original: float
    """Accuracy before the merge."""
    reached: float
    """Accuracy after the merge."""
    relative: float
    """``reached / original``."""
    target: float
    """Least value allowed for ``relative``."""


class TrialReport(Value):
    """One trial of the search: a group that was merged, and whether the result was kept."""

    group: str
    models: tuple[str, ...]
    accepted: bool
    seconds: float
    samples: int
    """Images that models were trained on, summed over models."""
    accuracies: dict[str, float]
    """Accuracy of each query after the trial, from 0 to 1."""
    ended: str
    """Reason why training ended."""
    saved_bytes: ByteCount
    """Bytes that the whole workload saves after the trial."""


class UseReport(Value):
    """One parameter of one model that holds a shared tensor."""

    query: str
    """Name of the model, which is the name of the first query that uses the model."""
    parameter: str


class SharedTensor(Value):
    """One tensor that several parameters hold."""

    tensor: Id
    """Hash of dtype, shape and bytes, as in a bundle."""
    bytes: ByteCount
    uses: Annotated[tuple[UseReport, ...], Field(min_length=2)]


class MergeReport(Value):
    """Content of merge.json. A field that a later version adds needs a default, so that older files stay readable."""

    schema_version: str = "1.0"
    strategy: str
    seed: int
    original_bytes: ByteCount
    """Bytes that one bundle per original model holds, summed: heads, biases and BatchNorm as compiled."""
    merged_bytes: ByteCount
    """Bytes that one bundle of all merged models holds: what ``gemel-compile`` writes."""
    layer_bytes: ByteCount
    """Bytes of the weights of convolutions and linear layers alone, before merging."""
    saving: float
    """Part of ``original_bytes`` that is saved, from 0 to 1."""
    layer_saving: float
    """Part of ``layer_bytes`` that is saved, from 0 to 1."""
    potential: float
    """Part of ``original_bytes`` that would be saved if models shared all that they could share with each other."""
    finished: bool
    """Whether the search came to its end; ``--resume`` continues one that did not."""
    queries: dict[str, QueryReport]
    trials: tuple[TrialReport, ...]
    shared: tuple[SharedTensor, ...]


def read_report(path: Path) -> MergeReport:
    """Read merge.json.

    Raises:
        WorkloadError: the file is missing, is not JSON, or has another form.
    """
    try:
        return MergeReport.model_validate_json(path.read_bytes())
    except OSError as error:
        raise WorkloadError(f"{path}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise WorkloadError(f"{path}: {problem(error)}") from error


def read_merge(bundle: Bundle) -> MergeReport | None:
    """Return the merge.json of a bundle, or None if there is none that can be read: a bundle runs without the file."""
    if MERGE_REPORT not in bundle.manifest.files:
        return None
    try:
        return read_report(bundle.file(MERGE_REPORT))
    except WorkloadError:
        return None
