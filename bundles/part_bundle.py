"""Bundle of some queries of other bundles: their models, and the tensors that these use, once each.

Programs, modes and precisions stay, and so do the original weights that a model has for a revert. The blob is laid out
anew, so the ONNX files get other offsets. Tensors keep their ids, so a delta between two such bundles carries only what
the other one lacks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..version import find_version
from .arrange import arrange, stages_of
from .form_specs import FormSpec
from .manifest import Manifest, ModelSpec, OriginalSpec, OriginalsSpec, QuerySpec
from .reader import Bundle, open_bundle
from .replace_bundle import replacing
from .write_arranged import verified_bytes, verified_tensor, write_arranged

__all__ = ["BundlePart", "check_parts", "write_part"]

_BLOB = "weights.bin"


@dataclass(frozen=True)
class BundlePart:
    """Some queries of one bundle."""

    bundle: Bundle
    queries: tuple[str, ...]

    @property
    def models(self) -> dict[str, ModelSpec]:
        """Models of the queries by name."""
        content = self.bundle.manifest
        return {content.queries[query].model: content.models[content.queries[query].model] for query in self.queries}

    @property
    def originals(self) -> dict[str, OriginalSpec]:
        """Other weights of these models that the bundle has, by name of the model."""
        known = self.bundle.manifest.originals
        return {} if known is None else {name: known.models[name] for name in self.models if name in known.models}

    @property
    def forms(self) -> dict[str, FormSpec]:
        """Kernels that are computed, by id, for all models of the bundle and their other weights."""
        known = self.bundle.manifest.originals
        return {**({} if known is None else known.forms), **self.bundle.manifest.forms}


def check_parts(parts: Sequence[BundlePart]) -> None:
    """Check that parts of bundles can be one bundle.

    Raises:
        InputError: two bundles have different models, feeds or queries of one name, or another backend or objective.
    """
    first = parts[0].bundle
    for part in parts[1:]:
        content, has = part.bundle.manifest, first.manifest
        for key, one, other in (
            ("device.backend", has.device.backend, content.device.backend),
            ("objective", has.objective, content.objective),
        ):
            if one != other:
                raise InputError(
                    f"{key} is {one} in {first.path} and {other} in {part.bundle.path}; they must be equal"
                )
    for kind in ("models", "feeds", "queries"):
        seen: dict[str, tuple[Bundle, Any]] = {}
        for part in parts:
            for name, spec in _named(part, kind).items():
                bundle, known = seen.setdefault(name, (part.bundle, spec))
                if bundle is not part.bundle and (kind != "feeds" or known != spec):
                    raise InputError(
                        f"{kind}.{name} is in {bundle.path} and in {part.bundle.path}; one bundle cannot have both"
                    )


def write_part(output: Path, parts: Sequence[BundlePart], memory: int | None = None) -> Bundle:
    """Write a bundle of some queries of other bundles; a bundle that is at ``output`` is replaced.

    merge.json and the like are not written, because they describe the whole workload. Nor is the address of original
    weights that are elsewhere, because they are there for the whole bundle.

    Args:
        output: folder of the new bundle.
        parts: at least one part, each of another bundle, with at least one query.
        memory: bytes of weights that may be in memory; that of the first bundle if left out.

    Raises:
        InputError: the parts cannot be one bundle; see :func:`check_parts`.
        BundleError: a bundle is damaged, or ``output`` cannot be written.
    """
    check_parts(parts)
    for part in parts:
        if output.resolve() == part.bundle.path.resolve():
            raise InputError(f"{output}: is one of the bundles that queries are taken from")
    content = _content(parts, memory)
    home_of = {tensor: part.bundle for part in parts for tensor in part.bundle.manifest.tensors}
    file_of = {
        name: part.bundle
        for part in parts
        for model in (*part.models.values(), *(other.model for other in part.originals.values()))
        for name in stages_of(model)
    }
    with replacing(output) as work:
        write_arranged(
            content,
            work,
            lambda name: verified_bytes(file_of[name], name),
            lambda tensor: verified_tensor(home_of[tensor], tensor),
        )
    return open_bundle(output)


def _content(parts: Sequence[BundlePart], memory: int | None) -> Manifest:
    """Return the manifest of the bundle that parts make, with the places of all tensors.

    Raises:
        InputError: two parts have a file of one name, or one computes a kernel that another one stores.
    """
    first = parts[0].bundle.manifest
    models = {name: model for part in parts for name, model in part.models.items()}
    originals = {name: other for part in parts for name, other in part.originals.items()}
    used = [*models.values(), *(other.model for other in originals.values())]
    files: set[str] = set()
    for model in used:
        for name in stages_of(model):
            if name in files:
                raise InputError(f"{name} is a file of two bundles; one bundle cannot have both")
            files.add(name)
    tensors = {name: spec for part in parts for name, spec in part.bundle.manifest.tensors.items()}
    forms = {name: form for part in parts for name, form in part.forms.items()}
    for name, model in models.items():
        for weight in model.weights:
            if weight in forms and weight in tensors:
                raise InputError(f"a kernel of {name} is computed in one bundle and stored in another one: {weight}")
    content = Manifest(
        producer={"gemel": find_version()},
        device=first.device if memory is None else first.device.model_copy(update={"memory": memory}),
        sla_ms=first.sla_ms,
        objective=first.objective,
        feeds={name: feed for part in parts for name, feed in _named(part, "feeds").items()},
        queries={name: _query(part.bundle.manifest, name, first.sla_ms) for part in parts for name in part.queries},
        models={},
        programs={},
        tensors={},
        segments={},
        outputs=tuple(
            {each.model_dump_json(): each for part in parts for each in part.bundle.manifest.outputs}.values()
        ),
        blob="weights.bin",
        files={},
    )
    made = arrange(content, models, OriginalsSpec(models=originals), tensors, forms)
    return made if originals else made.model_copy(update={"originals": None})


def _query(content: Manifest, name: str, sla_ms: float) -> QuerySpec:
    """Return a query with an SLA of its own, if the new bundle's SLA is another one than that of its old bundle."""
    query = content.queries[name]
    return query if content.sla_of(name) == sla_ms else query.model_copy(update={"sla_ms": content.sla_of(name)})


def _named(part: BundlePart, kind: str) -> Mapping[str, Any]:
    """Return the models, feeds or queries of a part by name."""
    content = part.bundle.manifest
    if kind == "models":
        return part.models
    if kind == "queries":
        return {name: content.queries[name] for name in part.queries}
    return {content.queries[name].feed: content.feeds[content.queries[name].feed] for name in part.queries}
