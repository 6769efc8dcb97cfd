"""Writing of a bundle's files: the blob, one ONNX file per stage, the manifest."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from ...bundles import blob, manifest, program
from ...bundles.decode_specs import DecodeSpec
from ...bundles.form_nodes import put_forms
from ...bundles.reader import MANIFEST
from ...bundles.staleness import Staleness
from ...bundles.tensor_users import TensorUsers
from ...frames.reference import is_local_file
from ...version import find_version
from ...workload.document.output_schema import output_specs
from ...workload.document.schema import FeedSettings, Query, Workload
from ..lowering.lower import Lowered
from ..passes.edit import constant, constant_id
from .layer_forms import LayerForms
from .session_mode import session_mode

__all__ = ["write_bundle"]

_BLOB = "weights.bin"
_IR_VERSION = 10
"""ONNX IR version that ONNX Runtime 1.22 and TensorRT 10.3 read."""
_NOWHERE = manifest.TensorSpec(offset=0, length=0, dtype="float32", shape=())
"""Placeholder for a weight's offset and length in the blob, until the blob is laid out."""


def write_bundle(
    folder: Path,
    workload: Workload,
    models: Sequence[Lowered],
    model_of: Mapping[str, str],
    beside: Mapping[str, bytes],
    forms: LayerForms,
) -> manifest.Manifest:
    """Write a bundle into an empty folder.

    Args:
        folder: folder of the bundle.
        workload: workload whose feeds, queries and settings go into the manifest.
        models: every distinct model, after all graph passes.
        model_of: query name -> model name.
        beside: name -> content of other files that are part of the bundle.
        forms: initializer -> form, for kernels that are kept as codes.

    Returns:
        The manifest that was written.
    """
    arrays: dict[str, Callable[[], NDArray[Any]]] = {}
    """Tensor id -> function that reads the tensor."""
    users = TensorUsers(lambda tensor, array: arrays.update({tensor: partial(_same, array)}))
    weights: dict[tuple[str, str], dict[str, str]] = {}
    decodes: dict[str, DecodeSpec] = {}
    used: dict[str, list[str]] = {}
    """Model -> tensors that its decoder needs."""

    def add(model: str, tensor: str, read: Callable[[], NDArray[Any]]) -> str:
        users.add(model, tensor, read())
        arrays.setdefault(tensor, read)
        return tensor

    for model in models:
        for stage, graph in model.stages.items():
            _stamp(graph)
            values = graph.graph.initializers
            weights[model.name, stage] = places = {name: constant_id(values[name]) for name in _weight_names(graph)}
            for name, tensor in places.items():
                if (form := forms.get((model.name, stage, name))) is not None:
                    users.add_form(model.name, tensor, form)
                else:
                    add(model.name, tensor, partial(constant, values[name]))
        anchors = {
            name: add(model.name, blob.tensor_id(array), partial(_same, array)) for name, array in model.tensors.items()
        }
        decodes[model.name], used[model.name] = _with_tensors(model.decode, anchors), list(anchors.values())
    placed, computed = users.layout(), users.forms()
    files = {
        _BLOB: manifest.FileSpec(
            sha256=blob.write_blob(folder / _BLOB, placed, lambda tensor: arrays[tensor]()), bytes=placed.bytes
        )
    }
    specs: dict[str, manifest.ModelSpec] = {}
    programs: dict[str, manifest.ProgramSpec] = {}
    by_name = {query.name: query for query in workload.queries}
    for model in models:
        stages: dict[str, manifest.Stage] = {}
        for stage, graph in model.stages.items():
            file = f"{model.name}.onnx" if stage == "main" else f"{model.name}.{stage}.onnx"
            places = weights[model.name, stage]
            data = _serialise(graph, {name: placed.tensors.get(tensor, _NOWHERE) for name, tensor in places.items()})
            if own := {name: computed[tensor] for name, tensor in places.items() if tensor in computed}:
                data = put_forms(program.read_model(data), own, placed.tensors, _BLOB).SerializeToString(
                    deterministic=True
                )
            files[file] = _put(folder / file, data)
            stages[stage] = made = _stage(file, data, places)
            others = programs[made.program].models if made.program in programs else ()
            programs[made.program] = manifest.ProgramSpec(models=(*others, model.name), inputs=len(made.weights))
        specs[model.name] = manifest.ModelSpec(
            stages=stages,
            input=model.input,
            decode=decodes[model.name],
            mode=session_mode(model),
            precision=model.precision,
            bytes=sum(
                computed[tensor].bytes if tensor in computed else placed.tensors[tensor].length
                for tensor in {*used[model.name], *(tensor for each in stages.values() for tensor in each.weights)}
            ),
            segments=tuple(name for name, spec in placed.segments.items() if model.name in spec.models),
            source=by_name[model.name].model.model_dump(mode="json", exclude_defaults=True),
        )
    files |= {name: _put(folder / name, data) for name, data in beside.items()}
    content = manifest.Manifest(
        schema_version=manifest.FORMS_VERSION if computed else manifest.PLAIN_VERSION,
        producer={"gemel": find_version()},
        device=manifest.DeviceSpec(backend=workload.device.backend, memory=workload.device.memory),
        sla_ms=workload.sla,
        objective=workload.objective,
        feeds={name: _feed(feed, workload.root) for name, feed in workload.feeds.items()},
        queries={
            query.name: _query(query, model_of[query.name], workload.staleness.get(query.name))
            for query in workload.queries
        },
        models=specs,
        programs=programs,
        tensors=placed.tensors,
        forms=computed,
        segments=placed.segments,
        outputs=output_specs(workload.outputs),
        blob=_BLOB,
        files=files,
    )
    (folder / MANIFEST).write_text(content.model_dump_json(indent=1))
    return content


def _put(path: Path, data: bytes) -> manifest.FileSpec:
    """Write a file of a bundle, and return the file's entry in the manifest."""
    path.write_bytes(data)
    return manifest.FileSpec(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))


def _same(array: NDArray[Any]) -> NDArray[Any]:
    return array


def _query(query: Query, model: str, staleness: Staleness | None) -> manifest.QuerySpec:
    return manifest.QuerySpec(
        feed=query.feed,
        model=model,
        task=query.task,
        labels=tuple(query.labels) if query.labels is not None else None,
        classes=tuple(query.classes) if query.classes is not None else None,
        threshold=query.threshold,
        target=query.target,
        sla_ms=query.sla,
        min_fps=query.min_fps,
        weight=query.weight,
        priority=query.priority,
        staleness=staleness,
    )


def _feed(feed: FeedSettings, root: Path) -> manifest.FeedSpec:
    """Return the manifest's entry of a feed. The path of a file is made absolute, as a bundle may run from any folder.

    A merged workload names the file from another folder. It gets the same path, so that a reload keeps the feed.

    A source that starts with a variable stays as it is. It is the address of a camera, whose variables are filled in
    when the bundle runs; variables in paths were filled in when the workload was loaded.
    """
    source = feed.source
    if is_local_file(source) and not source.startswith("${"):
        path = (root / Path(source).expanduser()).absolute()
        # Without "..", while links stay, which may point to another file tomorrow.
        plain = Path(os.path.abspath(path))  # noqa: PTH100
        source = str(plain if plain.resolve() == path.resolve() else path)
    return manifest.FeedSpec(
        source=source,
        fps=feed.fps,
        loop=feed.loop,
        transport=feed.transport,
        timeout=feed.timeout,
        hardware=feed.hardware,
    )


def _stamp(model: ir.Model) -> None:
    """Overwrite the producer and versions in an exported graph, because a program must not depend on the exporter."""
    model.ir_version = _IR_VERSION
    model.producer_name, model.producer_version, model.model_version = "gemel", None, None
    model.doc_string = model.domain = None


def _weight_names(model: ir.Model) -> list[str]:
    """Return the names of a graph's initializers that become inputs of the program, in the order of the inputs.

    :func:`gemel.bundles.program.split_model` decides.
    """
    data = _serialise(model, {name: _NOWHERE for name, value in model.graph.initializers.items() if _large(value)})
    return list(program.split_model(program.read_model(data)).weights)


def _large(value: ir.Value) -> bool:
    """Return whether an initializer is too large to be serialised where only the names of weights are needed."""
    return value.const_value is not None and value.const_value.size > 64


def _serialise(model: ir.Model, places: dict[str, manifest.TensorSpec]) -> bytes:
    """Return the ONNX file of a stage, with the named initializers as external data in the blob."""
    initializers = model.graph.initializers
    kept = {name: initializers[name].const_value for name in places}
    for name, place in places.items():
        tensor = kept[name]
        assert tensor is not None  # every initializer of a model being compiled has a value
        shape = ir.Shape(tensor.numpy().shape)
        initializers[name].const_value = ir.ExternalTensor(
            _BLOB, place.offset, place.length, tensor.dtype, shape=shape, name=name
        )
    try:
        data: bytes = ir.serde.serialize_model(model).SerializeToString(deterministic=True)
    finally:
        for name, tensor in kept.items():
            initializers[name].const_value = tensor
    return data


def _stage(file: str, data: bytes, tensors: dict[str, str]) -> manifest.Stage:
    """Return the manifest's entry of a stage.

    Args:
        file: name of the ONNX file.
        data: content of the file.
        tensors: initializer name -> tensor id.
    """
    model = program.read_model(data)
    parts = program.split_model(model)
    ports = [
        tuple(
            manifest.Port(name=port.name, dtype=program.port_dtype(port), shape=program.port_shape(port))
            for port in group
        )
        for group in (model.graph.input, model.graph.output)
    ]
    return manifest.Stage(
        file=file,
        program=parts.id,
        inputs=ports[0],
        outputs=ports[1],
        weights=tuple(tensors[name] for name in parts.weights),
    )


def _with_tensors(decode: DecodeSpec, tensors: dict[str, str]) -> DecodeSpec:
    """Return a decoder's spec with tensor ids in place of the names of its anchors."""
    anchors = getattr(decode, "anchors", None)
    if anchors is None:
        return decode
    update = tensors[anchors] if isinstance(anchors, str) else tuple(tensors[name] for name in anchors)
    return decode.model_copy(update={"anchors": update})
