"""Bytes of a bundle's original weights, and the memory that reverts take."""

from __future__ import annotations

from typing import Any

from ...bundles.blob import footprint
from ...bundles.manifest import Manifest, ModelSpec
from ...bundles.originals import originals_bytes, with_exchanged
from ...bundles.reader import Bundle

__all__ = ["least_bytes", "original_figures", "unique_bytes"]


def original_figures(bundle: Bundle) -> dict[str, Any] | None:
    """Return the figures of original weights as a value that JSON can hold; None if the bundle knows of none.

    ``at`` is where the original weights are, if not in the bundle. ``bytes`` is what waits in the bundle and is not
    loaded. ``models`` has, by model, its queries, whether it is ``reverted``, and the bytes of weights in memory
    (``unique_bytes``) and the minimum of memory (``least_bytes``) after this model alone was reverted, or after that
    was undone.
    """
    content = bundle.manifest
    if content.originals is None or not (content.originals.models or content.originals.at):
        return None
    models: dict[str, Any] = {}
    for name, other in content.originals.models.items():
        after = with_exchanged(content, [name])
        models[name] = {
            "queries": [query for query, spec in content.queries.items() if spec.model == name],
            "reverted": other.reverted,
            "unique_bytes": unique_bytes(after),
            "least_bytes": least_bytes(after),
        }
    return {"at": content.originals.at, "bytes": originals_bytes(content), "models": models}


def unique_bytes(content: Manifest) -> int:
    """Return the bytes of the distinct tensors that the models of a bundle use which run."""
    return sum(content.tensors[tensor].length for tensor in content.resident)


def least_bytes(content: Manifest) -> int:
    """Return the minimum bytes of weights in memory with which every model of a bundle can run.

    See :func:`.inspect.least_memory`.
    """
    swapped = {
        name: sum(footprint(content.segments[segment].length) for segment in model.segments) + _computed(content, model)
        for name, model in content.models.items()
    }
    private = [name for name, model in content.models.items() if model.mode == "constant" and model.precision != "int8"]
    largest = max((size for name, size in swapped.items() if name not in private), default=0)
    return largest + sum(content.models[name].bytes for name in private)


def _computed(content: Manifest, model: ModelSpec) -> int:
    """Return the bytes of a model's kernels that are computed from stored tensors."""
    return footprint(sum(content.bytes_of(weight) for weight in content.forms.keys() & set(model.weights)))
