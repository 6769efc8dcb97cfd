"""Bundle with rounded changes: its retrained weights are those of an earlier bundle plus changes of 8 bits.

Only tensors differ from the bundle whose changes are rounded: offsets, graphs and all else stay.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from .blob import Layout, tensor_id, write_blob
from .manifest import FileSpec, Manifest
from .matching_tensors import matching_tensors
from .reader import MANIFEST, Bundle, open_bundle
from .replace_bundle import replacing
from .rounded_changes import rounded, rounding_error
from .stage_specs import stem_id
from .tensor_encodings import fits_encoding

__all__ = ["Rounded", "write_rounded"]

_LEAST = 4096
"""Size in bytes below which a tensor is not rounded: its scales and its entry in a delta would outweigh the saving."""

_MOST_ERROR = 0.01
"""Maximum error of rounded weights in parts of the weights (Euclidean norms): about that of int8 weights."""


@dataclass(frozen=True)
class Rounded:
    """Bundle with rounded changes, and what they were made of."""

    bundle: Bundle
    """Bundle whose retrained weights are sums of old weights and rounded changes."""
    source: Bundle
    """Bundle with the retrained weights before rounding. Its tensors have the same places in the blob."""
    bases: dict[str, str]
    """Tensor that is such a sum -> the old tensor in the sum."""


def write_rounded(old: Bundle, new: Bundle, output: Path) -> Rounded:
    """Write a bundle whose retrained weights are those of an earlier bundle plus rounded changes.

    Args:
        old: the earlier bundle.
        new: bundle with retrained weights.
        output: folder for the bundle that is written; a bundle that is there is replaced.

    Returns:
        The written bundle. Small tensors in it, those of other types than float32, those that kernels are computed
        from, and those whose changes are too large to be rounded are those of ``new``.

    Raises:
        BundleError: a bundle cannot be read, or ``output`` cannot be written.
    """
    bases = _bases(old, new)
    taken = {*new.manifest.tensors}
    renamed: dict[str, str] = {}
    for tensor, base in bases.items():
        name = tensor_id(rounded(old.tensor(base), new.tensor(tensor)))
        # Two tensors that became equal would need another layout. Weights that were rounded before stay as they are.
        if name == tensor or name not in taken:
            taken.add(name)
            renamed[tensor] = name
    before = {name: tensor for tensor, name in renamed.items()}

    def read(name: str) -> NDArray[Any]:
        tensor = before.get(name, name)
        return new.tensor(tensor) if tensor not in renamed else rounded(old.tensor(bases[tensor]), new.tensor(tensor))

    with replacing(output) as work:
        content = new.manifest
        placed = Layout(
            {renamed.get(tensor, tensor): spec for tensor, spec in content.tensors.items()},
            dict(content.segments),
            content.files[content.blob].bytes,
        )
        digest = write_blob(work / content.blob, placed, read)
        for name in content.files:
            if name != content.blob:
                (work / name).write_bytes(new.file(name).read_bytes())
        spec = FileSpec(bytes=placed.bytes, sha256=digest)
        document = _renamed(json.loads((new.path / MANIFEST).read_bytes()), renamed)
        document["files"][content.blob] = spec.model_dump()
        made = _with_stem_ids(Manifest.model_validate(document))
        (work / MANIFEST).write_text(made.model_dump_json(indent=1))
    return Rounded(open_bundle(output), new, {name: bases[tensor] for tensor, name in renamed.items()})


def _bases(old: Bundle, new: Bundle) -> dict[str, str]:
    """Return tensor of the new bundle -> nearest old tensor, for tensors whose changes may be rounded."""
    found: dict[str, str] = {}
    # A kernel that is computed from rounded tensors would be another one, with another id.
    sources = {tensor for form in new.manifest.forms.values() for tensor in form.stored}
    # Original weights stay what they are.
    if (originals := new.manifest.originals) is not None:
        sources |= {tensor for form in originals.forms.values() for tensor in form.stored}
        sources.update(
            *(
                (new.manifest.models[name] if other.reverted else other.model).weights
                for name, other in originals.models.items()
            )
        )
    for tensor, candidates in matching_tensors(old, new).items():
        spec = new.manifest.tensors[tensor]
        if tensor in sources or spec.length < _LEAST or not fits_encoding(spec, "steps", spec):
            continue
        after = new.tensor(tensor)
        errors = {base: rounding_error(old.tensor(base), after) for base in candidates}
        nearest = min(errors, key=errors.__getitem__)
        if errors[nearest] <= _MOST_ERROR:
            found[tensor] = nearest
    return found


def _renamed(document: Any, names: Mapping[str, str]) -> Any:
    """Return a manifest's document with other tensor ids, wherever they stand."""
    if isinstance(document, dict):
        return {names.get(key, key): _renamed(value, names) for key, value in document.items()}
    if isinstance(document, list):
        return [_renamed(value, names) for value in document]
    return names.get(document, document) if isinstance(document, str) else document


def _with_stem_ids(content: Manifest) -> Manifest:
    """Return a manifest whose stems have the ids of their new weights: equal stems keep equal ids."""
    models = {}
    for name, model in content.models.items():
        if model.stem is not None:
            stem = model.stem.model_copy(update={"id": stem_id(model.stem.stem)})
            model = model.model_copy(update={"stem": stem})
        models[name] = model
    return content.model_copy(update={"models": models})
