"""Search of a bundle's graphs for the tensors that ``gemel merge`` made several layers share.

merge.json (:mod:`.merge_report`) lists which parameters share a tensor. Conversion to int8 or fp16 may change the
tensor later, so its hash in merge.json does not tell whether the parameters still share one tensor in the bundle.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .merge_report import read_merge
from .program import read_model, tensors_of
from .reader import Bundle

__all__ = ["MergedTensor", "merged_tensors"]


@dataclass(frozen=True)
class MergedTensor:
    """Tensor that merge.json lists as shared, with the number and element types of its copies in the bundle."""

    name: str
    """Model and parameter of the first use that merge.json lists for a shared tensor, as ``model: parameter``."""
    dtypes: frozenset[str]
    """Element types of a shared tensor's copies in the bundle; more than one if the copies differ in precision."""
    copies: int
    """Number of distinct tensors that one shared tensor of merge.json became in the bundle.

    The number is above 1 for small kernels into which the compiler folds the BatchNorm of each layer on purpose.
    """


def merged_tensors(bundle: Bundle) -> Iterator[MergedTensor]:
    """Yield every tensor of merge.json whose parameters are initializers of the same names in the bundle's graphs.

    Models that are reverted to their original weights do not use these tensors.

    Nothing is yielded if merge.json is missing or cannot be read.

    Raises:
        BackendError: a graph has subgraphs, see :func:`.program.split_model`.
        BundleError: the manifest names more or fewer tensors than a graph has weights.
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
        places = [(use.query, use.parameter) for use in shared.uses if use.query not in content.reverted]
        if not places:
            continue
        found = {tensor_of[place] for place in places if place in tensor_of}
        if found:
            dtypes = frozenset("float32" if each in content.forms else content.tensors[each].dtype for each in found)
            yield MergedTensor(": ".join(places[0]), dtypes, len(found))
