"""Bundle of some queries of other bundles: their models, and the tensors that these use, once each.

Programs, modes and precisions stay. The blob is laid out anew, so the ONNX files get other offsets. Tensors keep their
ids, so a delta between two such bundles carries only what the other one lacks.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ..errors import BundleError, InputError
from ..version import find_version
from .blob import Layout, layout, write_blob
from .form_specs import FormSpec
from .manifest import (
    FORMS_VERSION,
    PLAIN_VERSION,
    FileSpec,
    Manifest,
    ModelSpec,
    ProgramSpec,
    QuerySpec,
    Stage,
    TensorSpec,
)
from .onnx_wire import Message
from .program import read_model
from .reader import MANIFEST, Bundle, open_bundle, verify
from .replace_bundle import replacing

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

    merge.json and the like are not written, because they describe the whole workload.

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
        for _ in verify(part.bundle):
            pass
    with replacing(output) as work:
        _write(work, parts, memory)
    return open_bundle(output)


def _write(work: Path, parts: Sequence[BundlePart], memory: int | None) -> None:
    """Write all files of a bundle into an empty folder."""
    models = {name: model for part in parts for name, model in part.models.items()}
    specs = {name: spec for part in parts for name, spec in part.bundle.manifest.tensors.items()}
    forms = {name: form for part in parts for name, form in _forms(part).items()}
    homes = {tensor: part.bundle for part in parts for tensor in part.bundle.manifest.tensors}
    placed, computed = _layout(models, forms, specs)
    files = {
        _BLOB: FileSpec(
            sha256=write_blob(work / _BLOB, placed, lambda tensor: _read(homes, tensor)), bytes=placed.bytes
        )
    }
    programs: dict[str, ProgramSpec] = {}
    for part in parts:
        for name, model in part.models.items():
            for stage in _stages(model):
                if stage.file in files:
                    raise InputError(f"{stage.file} is a file of two bundles; one bundle cannot have both")
                data = _moved(part.bundle, stage.file, placed)
                (work / stage.file).write_bytes(data)
                files[stage.file] = FileSpec(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
            for stage in model.stages.values():
                known = programs.get(stage.program)
                users = (*(known.models if known else ()), name)
                inputs = part.bundle.manifest.programs[stage.program].inputs
                programs[stage.program] = ProgramSpec(models=users, inputs=inputs)
    first = parts[0].bundle.manifest
    queries = {name: _query(part.bundle.manifest, name, first.sla_ms) for part in parts for name in part.queries}
    content = Manifest(
        schema_version=FORMS_VERSION if computed else PLAIN_VERSION,
        producer={"gemel": find_version()},
        device=first.device if memory is None else first.device.model_copy(update={"memory": memory}),
        sla_ms=first.sla_ms,
        objective=first.objective,
        feeds={name: feed for part in parts for name, feed in _named(part, "feeds").items()},
        queries=queries,
        models={
            name: model.model_copy(
                update={"segments": tuple(each for each, spec in placed.segments.items() if name in spec.models)}
            )
            for name, model in models.items()
        },
        programs=programs,
        tensors=placed.tensors,
        forms=computed,
        segments=placed.segments,
        outputs=tuple(
            {each.model_dump_json(): each for part in parts for each in part.bundle.manifest.outputs}.values()
        ),
        blob=_BLOB,
        files=files,
    )
    (work / MANIFEST).write_text(content.model_dump_json(indent=1))


def _layout(
    models: Mapping[str, ModelSpec], forms: Mapping[str, FormSpec], specs: Mapping[str, TensorSpec]
) -> tuple[Layout, dict[str, FormSpec]]:
    """Return the places of all tensors that models use, and the kernels that are computed.

    What is only there to compute kernels from has segments of its own, as in every bundle.
    """
    users: dict[str, set[str]] = defaultdict(set)
    sources: dict[str, set[str]] = defaultdict(set)
    computed: dict[str, FormSpec] = {}
    for name, model in models.items():
        for weight in (*model.weights, *_anchors(model)):
            if weight not in forms:
                users[weight].add(name)
                continue
            if weight in specs:
                raise InputError(f"a kernel of {name} is computed in one bundle and stored in another one: {weight}")
            computed[weight] = forms[weight]
            for tensor in forms[weight].stored:
                sources[tensor].add(name)
    every = {tensor: users.get(tensor, set()) | sources.get(tensor, set()) for tensor in {**users, **sources}}
    shapes = {tensor: (specs[tensor].dtype, specs[tensor].shape) for tensor in specs if tensor in every}
    return layout(shapes, every, apart={tensor for tensor in every if tensor not in users}), computed


def _read(homes: Mapping[str, Bundle], tensor: str) -> NDArray[Any]:
    return homes[tensor].tensor(tensor)


def _moved(bundle: Bundle, file: str, placed: Layout) -> bytes:
    """Return an ONNX file of a bundle whose tensors lie at other places of the blob.

    Raises:
        BundleError: the file refers to bytes of the blob that are no tensor of the new bundle.
    """
    tensor_at = {(str(spec.offset), str(spec.length)): name for name, spec in bundle.manifest.tensors.items()}
    model = read_model(bundle.file(file).read_bytes())
    for tensor in _external(model):
        entries = {entry.key: entry for entry in tensor.external_data}
        offset, length = (entries[key].value if key in entries else "" for key in ("offset", "length"))
        found = tensor_at.get((offset, length))
        if "location" not in entries or found is None or found not in placed.tensors:
            raise BundleError(
                f"{bundle.file(file)}: {tensor.name} lies where the manifest lists no tensor of its model"
            )
        entries["location"].value = _BLOB
        entries["offset"].value = str(placed.tensors[found].offset)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _external(model: Message) -> Iterable[Message]:
    """Return the initializers of a model that lie in the blob. No other part of a bundle's graphs refers to a file."""
    return [tensor for tensor in model.graph.initializer if len(tensor.external_data)]


def _stages(model: ModelSpec) -> list[Stage]:
    """Return the entries of all ONNX files of a model, those of its stem included."""
    stem = () if model.stem is None else (model.stem.stem, model.stem.rest)
    return [*model.stages.values(), *stem]


def _anchors(model: ModelSpec) -> tuple[str, ...]:
    """Return the tensors that a model's decoder needs."""
    anchors = getattr(model.decode, "anchors", None) or ()
    return (anchors,) if isinstance(anchors, str) else tuple(anchors)


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


def _forms(part: BundlePart) -> dict[str, FormSpec]:
    """Return the kernels of a part's models that are computed."""
    forms = part.bundle.manifest.forms
    return {weight: forms[weight] for model in part.models.values() for weight in model.weights if weight in forms}
