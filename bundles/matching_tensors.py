"""Search of old tensors that new ones came from: weights of the same name in the same model of an earlier bundle."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from ..errors import BackendError, BundleError
from .manifest import Stage
from .program import read_model, tensors_of
from .reader import Bundle

__all__ = ["matching_tensors"]


def matching_tensors(old: Bundle, new: Bundle) -> dict[str, tuple[str, ...]]:
    """Return new tensor -> old tensors of equal dtype and shape, from which retraining may have made the new one.

    These are the weights that had the same name in the same stage of the same model. A tensor that several models share
    may have come from several old ones. Tensors that both bundles have are left out.

    Raises:
        BackendError: an ONNX file has subgraphs.
        BundleError: a manifest names more or fewer tensors than an ONNX file has weights.
    """
    found: dict[str, set[str]] = defaultdict(set)
    for model in new.manifest.models.keys() & old.manifest.models.keys():
        stages = old.manifest.models[model].stages
        for name, stage in new.manifest.models[model].stages.items():
            if name in stages:
                for before, after in _pairs(old, stages[name], new, stage):
                    found[after].add(before)
    specs, earlier = new.manifest.tensors, old.manifest.tensors
    return {
        tensor: tuple(sorted(alike))
        for tensor, bases in sorted(found.items())
        if tensor not in earlier
        and (
            alike := [
                base
                for base in bases
                if (earlier[base].dtype, earlier[base].shape) == (specs[tensor].dtype, specs[tensor].shape)
            ]
        )
    }


def _pairs(old: Bundle, before: Stage, new: Bundle, after: Stage) -> Iterator[tuple[str, str]]:
    """Yield the old and the new tensor of each weight that two versions of a stage have."""
    if before.program == after.program:
        yield from zip(before.weights, after.weights, strict=False)
        return
    names = [_names(bundle, stage) for bundle, stage in ((old, before), (new, after))]
    yield from ((names[0][name], tensor) for name, tensor in names[1].items() if name in names[0])


def _names(bundle: Bundle, stage: Stage) -> dict[str, str]:
    try:
        return tensors_of(read_model(bundle.file(stage.file).read_bytes()), stage)
    except (BackendError, BundleError):
        # Such a tensor is carried whole.
        return {}
