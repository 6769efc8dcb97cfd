"""Writing of the files of a bundle whose tensors have got other places in the blob."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ..errors import BundleError
from .arrange import stages_of
from .blob import Layout, tensor_id, write_blob
from .form_nodes import put_forms, without_forms
from .form_specs import FormSpec
from .manifest import FileSpec, Manifest, Stage, TensorSpec
from .onnx_wire import Message
from .program import read_model, tensors_of
from .reader import MANIFEST, Bundle

__all__ = ["verified_bytes", "verified_tensor", "write_arranged"]


def write_arranged(
    content: Manifest, work: Path, read_file: Callable[[str], bytes], read_tensor: Callable[[str], NDArray[Any]]
) -> Manifest:
    """Write a bundle into an empty folder.

    Args:
        content: result of :func:`.arrange.arrange`.
        work: folder to write to.
        read_file: function that returns the content of a file, which may have been made for other places of tensors.
        read_tensor: function that returns a stored tensor.

    Returns:
        The manifest that was written, with the hashes of all files.

    Raises:
        BackendError: an ONNX file has subgraphs.
        BundleError: an ONNX file has more or fewer weights than the manifest says.
        OSError: a file cannot be written.
    """
    others = {} if content.originals is None else content.originals.models
    stages = {file: stage for other in others.values() for file, stage in stages_of(other.model).items()}
    stages |= {file: stage for model in content.models.values() for file, stage in stages_of(model).items()}
    forms = {**({} if content.originals is None else content.originals.forms), **content.forms}
    files: dict[str, FileSpec] = {}
    for name, spec in content.files.items():
        if name == content.blob:
            placed = Layout(dict(content.tensors), dict(content.segments), spec.bytes)
            files[name] = FileSpec(bytes=spec.bytes, sha256=write_blob(work / name, placed, read_tensor))
            continue
        data = read_file(name)
        if name in stages:
            data = _with_places(data, stages[name], content.tensors, forms, content.blob)
        (work / name).write_bytes(data)
        files[name] = FileSpec(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    made = content.model_copy(update={"files": files})
    (work / MANIFEST).write_text(made.model_dump_json(indent=1))
    return made


def verified_bytes(bundle: Bundle, name: str) -> bytes:
    """Return the content of a file of a bundle.

    Raises:
        BundleError: the file is damaged.
    """
    data = bundle.file(name).read_bytes()
    if hashlib.sha256(data).hexdigest() != bundle.manifest.files[name].sha256:
        raise BundleError(f"{bundle.file(name)}: content is damaged: its sha256 is not that of the manifest")
    return data


def verified_tensor(bundle: Bundle, name: str) -> NDArray[Any]:
    """Return a stored tensor of a bundle, whose id is the hash of its content.

    Raises:
        BundleError: the tensor is damaged.
    """
    array = bundle.tensor(name)
    if tensor_id(array) != name:
        raise BundleError(f"{bundle.file(bundle.manifest.blob)}: content is damaged: tensor {name} has other bytes")
    return array


def _with_places(
    data: bytes, stage: Stage, tensors: Mapping[str, TensorSpec], forms: Mapping[str, FormSpec], location: str
) -> bytes:
    """Return an ONNX file whose weights lie at new places of the blob, or are computed from tensors there.

    Args:
        data: content of the file with other places.
        stage: entry of the file in the manifest.
        tensors: id -> new place.
        forms: id -> form, for kernels that are computed.
        location: name of the blob.
    """
    model = read_model(data)
    names = tensors_of(model, stage)
    model = without_forms(model)
    for initializer in model.graph.initializer:
        weight = names.get(initializer.name)
        if weight is not None and weight not in forms:
            _move(initializer, tensors[weight], location)
    if own := {name: forms[weight] for name, weight in names.items() if weight in forms}:
        model = put_forms(model, own, tensors, location)
    made: bytes = model.SerializeToString(deterministic=True)
    return made


def _move(initializer: Message, spec: TensorSpec, location: str) -> None:
    """Have an initializer read its values from a place in a file."""
    for field in ("external_data", "raw_data"):
        initializer.ClearField(field)
    initializer.data_location = 1  # TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", spec.offset), ("length", spec.length)):
        initializer.external_data.add(key=key, value=str(value))
