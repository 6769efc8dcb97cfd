"""Search of old tensors that new ones came from: weights of the same name in the same model of an earlier bundle."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from ..errors import BackendError, BundleError
from .manifest import ModelSpec, Stage
from .program import read_model, tensors_of
from .reader import Bundle

__all__ = ["matching_tensors"]


def matching_tensors(old: Bundle, new: Bundle) -> dict[str, tuple[str, ...]]:
    """Return new tensor -> old tensors of equal dtype and shape, from which retraining may have made the new one.

    These are the weights that had the same name in the same stage of the same model. Original weights that come beside
    merged ones count as made from them, too. A tensor that several models share
    may have come from several old ones. Tensors that both bundles have are left out.

    Raises:
        BackendError: an ONNX file has subgraphs.
        BundleError: a manifest names more or fewer tensors than an ONNX file has weights.
    """
    found: dict[str, set[str]] = defaultdict(set)
    for model, spec in _models(new):
        if model in old.manifest.models:
            stages = old.manifest.models[model].stages
            for name, stage in spec.stages.items():
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


def _models(bundle: Bundle) -> Iterator[tuple[str, ModelSpec]]:
    """Yield the models that run, and the original or merged ones that wait beside them, each with its name."""
    yield from bundle.manifest.models.items()
    if bundle.manifest.originals is not None:
        yield from ((name, other.model) for name, other in bundle.manifest.originals.models.items())


def _pairs(old: Bundle, before: Stage, new: Bundle, after: Stage) -> Iterator[tuple[str, str]]:
    """Yield the old and the new tensor of each weight that two versions of a stage have."""
    if before.program == after.program:
        weights = list(zip(before.weights, after.weights, strict=False))
    else:
        names = [_names(bundle, stage) for bundle, stage in ((old, before), (new, after))]
        weights = [(names[0][name], weight) for name, weight in names[1].items() if name in names[0]]
    for one, other in weights:
        parts = _stored(old, one)
        yield from ((parts[part], tensor) for part, tensor in _stored(new, other).items() if part in parts)


def _stored(bundle: Bundle, weight: str) -> dict[str, str]:
    """Return part -> stored tensor of a weight. A weight that is stored as it is counts as a base without codes."""
    content = bundle.manifest
    form = content.forms.get(weight) or (content.originals and content.originals.forms.get(weight))
    return {"base": weight} if not form else form.parts


def _names(bundle: Bundle, stage: Stage) -> dict[str, str]:
    try:
        return tensors_of(read_model(bundle.file(stage.file).read_bytes()), stage)
    except (BackendError, BundleError):
        # Such a tensor is carried whole.
        return {}
