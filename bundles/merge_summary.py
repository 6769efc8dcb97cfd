"""What a bundle's merge.json says of the merge that it comes from, and what became of it in the bundle."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, ValidationError

from .program import read_model, tensors_of
from .reader import Bundle

__all__ = ["MergeSummary", "MergedTensor", "merged_tensors", "read_merge"]

_MERGE = "merge.json"


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class _Accuracy(_Value):
    original: float
    reached: float
    relative: float
    target: float


class _Use(_Value):
    query: str
    """The model's name: that of the first query that uses it."""
    parameter: str


class _Shared(_Value):
    uses: tuple[_Use, ...]


class MergeSummary(_Value):
    """What the runtime reads of the report that ``gemel merge`` wrote; it knows nothing else of merging."""

    original_bytes: int
    merged_bytes: int
    saving: float
    queries: dict[str, _Accuracy]
    shared: tuple[_Shared, ...] = ()


@dataclass(frozen=True)
class MergedTensor:
    """A tensor that several layers hold since they were merged."""

    name: str
    """``model: parameter`` of the first of them."""
    dtypes: frozenset[str]
    """In the bundle; one, or it is there in several precisions."""
    copies: int
    """In the bundle; more than one of small kernels, which the compiler folds on purpose."""


def read_merge(bundle: Bundle) -> MergeSummary | None:
    """The merge's report; None where there is none, or none that can be read: a bundle runs without it."""
    if _MERGE not in bundle.manifest.files:
        return None
    try:
        return MergeSummary.model_validate_json(bundle.file(_MERGE).read_bytes())
    except ValidationError:
        return None


def merged_tensors(bundle: Bundle) -> Iterator[MergedTensor]:
    """Every tensor that merge.json names and the bundle's graphs call the same; none without such a file.

    Raises:
        BackendError: a graph that cannot be taken apart.
        BundleError: a graph has more or fewer weights than the manifest says.
    """
    merge = read_merge(bundle)
    if merge is None:
        return
    content = bundle.manifest
    tensor_of: dict[tuple[str, str], str] = {}
    for name, model in content.models.items():
        for stage in model.stages.values():
            tensors = tensors_of(read_model(bundle.file(stage.file).read_bytes()), stage)
            tensor_of |= {(name, parameter): tensor for parameter, tensor in tensors.items()}
    for shared in merge.shared:
        places = [(use.query, use.parameter) for use in shared.uses]
        found = {tensor_of[place] for place in places if place in tensor_of}
        if found:
            dtypes = frozenset(content.tensors[tensor].dtype for tensor in found)
            yield MergedTensor(": ".join(places[0]), dtypes, len(found))
