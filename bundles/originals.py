"""Original weights of merged models, which lie in a bundle beside the merged ones and are not loaded.

The blob holds the tensors of both, each distinct tensor once. Which of a model's weights run is a matter of the
manifest, of the places in the blob and of the graphs that refer to them. So any query can be reverted after any other.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path

from ..errors import InputError
from .arrange import arrange
from .form_specs import FormSpec
from .manifest import Manifest, ModelSpec, OriginalSpec, OriginalsSpec
from .reader import Bundle, open_bundle
from .write_arranged import verified_bytes, verified_tensor, write_arranged
from .write_delta import WrittenDelta, write_delta

__all__ = [
    "add_originals",
    "changed_models",
    "note_address",
    "originals_bytes",
    "ship_originals",
    "with_exchanged",
    "write_exchanged",
]


def add_originals(merged: Bundle, original: Bundle, work: Path, at: str | None = None) -> Manifest:
    """Write a bundle that also has the original weights of its models into an empty folder.

    Models that the merge did not change get no second entry. Original models have no stems.

    Args:
        merged: bundle of the merged models.
        original: bundle of the original models of the same queries.
        work: folder to write to.
        at: URL or folder where boxes find the original weights; None if the bundle always has them.

    Returns:
        The manifest that was written.

    Raises:
        InputError: the bundle of the original models lacks a query or has another task or other labels for it, or no
            model was changed.
        BundleError: a bundle is damaged.
        OSError: a file cannot be written.
    """
    content, before = merged.manifest, original.manifest
    others: dict[str, OriginalSpec] = {}
    source_of: dict[str, str] = {}
    for name, found in changed_models(merged, original).items():
        names = {stage.file: _file_name(name, each) for each, stage in found.stages.items()}
        source_of |= {new: old for old, new in names.items()}
        stages = {each: stage.model_copy(update={"file": names[stage.file]}) for each, stage in found.stages.items()}
        others[name] = OriginalSpec(model=found.model_copy(update={"stages": stages, "segments": (), "stem": None}))
    if not others:
        raise InputError(f"{original.path}: its models are those of {merged.path}; there is nothing to revert to")
    tensors = {**before.tensors, **content.tensors}
    made = arrange(content, content.models, OriginalsSpec(models=others, at=at), tensors, _forms(content, before))

    def read_file(name: str) -> bytes:
        return verified_bytes(original, source_of[name]) if name in source_of else verified_bytes(merged, name)

    return write_arranged(
        made,
        work,
        read_file,
        lambda tensor: verified_tensor(merged if tensor in content.tensors else original, tensor),
    )


def changed_models(merged: Bundle, original: Bundle) -> dict[str, ModelSpec]:
    """Return the models of a merged bundle that differ from the original ones: name in it -> original model.

    Raises:
        InputError: the bundle of the original models lacks a query or has another task or other labels for it.
    """
    found = {name: original.manifest.models[_original_of(merged, original, name)] for name in merged.manifest.models}
    return {name: model for name, model in found.items() if _identity(model) != _identity(merged.manifest.models[name])}


def note_address(bundle: Bundle, work: Path, at: str) -> Manifest:
    """Write a bundle that knows where its original weights are into an empty folder; return its manifest.

    Args:
        bundle: bundle of merged models.
        work: folder to write to.
        at: URL or folder of the delta that adds the original weights.
    """
    content = bundle.manifest
    made = arrange(content, content.models, OriginalsSpec(at=at), content.tensors, content.forms)
    return write_arranged(made, work, partial(verified_bytes, bundle), partial(verified_tensor, bundle))


def ship_originals(bundle: Bundle, original: Bundle, output: Path) -> WrittenDelta:
    """Write the delta that adds the original weights to a bundle which knows where they are.

    Args:
        bundle: bundle that :func:`note_address` wrote.
        original: bundle of the original models.
        output: file of the delta, or an existing folder.

    Raises:
        InputError, BundleError: as for :func:`add_originals` and :func:`gemel.bundles.write_delta.write_delta`.
    """
    known = bundle.manifest.originals
    with tempfile.TemporaryDirectory(prefix="gemel-originals-", ignore_cleanup_errors=True) as folder:
        add_originals(bundle, original, Path(folder), None if known is None else known.at)
        return write_delta(bundle, open_bundle(folder), output)


def with_exchanged(content: Manifest, models: Collection[str], merged: str | None = None) -> Manifest:
    """Return the manifest of a bundle in which the original weights of some models run, or the merged ones again.

    Originals that can be fetched again are left out once no model runs with them. So the bundle is again the one that
    deltas from the merger start from. Files and the blob get no hashes here, because nothing is written.

    Args:
        content: manifest of a bundle that has the original weights of these models.
        models: names of the models whose two weights are exchanged.
        merged: id of the bundle, if none of its models is reverted; kept in the new one for as long as one is.
    """
    originals = content.originals
    assert originals is not None, "only models with original weights are exchanged"
    running = {
        name: originals.models[name].model if name in models else model for name, model in content.models.items()
    }
    others = {
        name: OriginalSpec(model=content.models[name].model_copy(update={"segments": ()}), reverted=not other.reverted)
        if name in models
        else other
        for name, other in originals.models.items()
    }
    reverted = any(other.reverted for other in others.values())
    if originals.at is not None and not reverted:
        others = {}
    if content.reverted:
        merged = originals.merged
    changes = {"models": others, "merged": merged if reverted else None}
    forms = {**originals.forms, **content.forms}
    return arrange(content, running, originals.model_copy(update=changes), content.tensors, forms)


def write_exchanged(bundle: Bundle, models: Collection[str], work: Path, merged: str | None = None) -> Manifest:
    """Write a bundle in which some models run with their other weights into an empty folder; return its manifest.

    Args:
        bundle: bundle that has the original weights of these models.
        models: names of the models whose two weights are exchanged.
        work: folder to write to.
        merged: id of the bundle without reverts from which the merger's deltas lead on; that of ``bundle`` if None.

    Raises:
        BundleError: the bundle is damaged, or its manifest is wrong about the models that do not run.
        OSError: a file cannot be written.
    """
    made = with_exchanged(bundle.manifest, models, merged or bundle.id)
    write_arranged(made, work, partial(verified_bytes, bundle), partial(verified_tensor, bundle))
    return open_bundle(work).manifest


def originals_bytes(content: Manifest) -> int:
    """Return the bytes of the tensors in a bundle that no running model uses: those that wait for a revert or undo."""
    running = content.resident
    return sum(spec.length for tensor, spec in content.tensors.items() if tensor not in running)


def _original_of(merged: Bundle, original: Bundle, model: str) -> str:
    """Return the name that a merged bundle's model has among the original models.

    Raises:
        InputError: a query is missing, is another one, or queries of the model have several original models.
    """
    known = original.manifest.queries
    found: dict[str, str] = {}
    for name, query in merged.manifest.queries.items():
        if query.model != model:
            continue
        if name not in known:
            raise InputError(f"{original.path}: has no query {name!r}, which {merged.path} has")
        if (known[name].task, known[name].labels) != (query.task, query.labels):
            raise InputError(f"{original.path}: query {name} has another task or other labels than in {merged.path}")
        found[known[name].model] = name
    if len(found) > 1:
        (one, first), (other, second) = list(found.items())[:2]
        raise InputError(
            f"{original.path}: queries {first} and {second} have models of their own, {one} and {other};"
            f" in {merged.path} they have one model, {model}"
        )
    return next(iter(found))


def _identity(model: ModelSpec) -> object:
    """Return a value that is equal for models with equal programs, weights, inputs and decoders."""
    stages = [(name, stage.program, stage.weights) for name, stage in model.stages.items()]
    return stages, model.input, model.decode, model.precision


def _file_name(model: str, stage: str) -> str:
    """Return the name of the file of an original model's stage. Names of models and stages have no dots."""
    return f"{model}.original.onnx" if stage == "main" else f"{model}.original.{stage}.onnx"


def _forms(merged: Manifest, original: Manifest) -> Mapping[str, FormSpec]:
    """Return the computed kernels of merged and original models; no kernel is also a stored tensor.

    A kernel is kept as the merged bundle keeps it, so that the memory and times of merged models stay.
    """
    forms = {**original.forms, **merged.forms}
    sources = {tensor for form in forms.values() for tensor in form.stored}
    plain = sources | merged.tensors.keys()
    return {
        kernel: form
        for kernel, form in forms.items()
        if kernel not in sources and (kernel in merged.forms or kernel not in plain)
    }
