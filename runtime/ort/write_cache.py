"""Writing the device cache of the ort-cpu backend: optimised programs and their weights, and INT8 graphs."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Set
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...bundles.blob import Layout, tensor_id, write_blob
from ...bundles.form_nodes import without_forms
from ...bundles.form_specs import FormSpec
from ...bundles.kernel_forms import KernelForm
from ...bundles.manifest import FileSpec, Precision
from ...bundles.onnx_wire import Message, tensor_array
from ...bundles.program import Program, read_model, tensors_of, with_constants
from ...bundles.reader import Bundle
from ...bundles.tensor_users import TensorUsers
from .bake_forms import FormBaker
from .bake_stems import bake_parts, measure_stems
from .baked import BLOB, Baked, BakedStage, write_record
from .copy_times import measure_private_copy
from .cpu_fp32 import kernel_scales, to_fp32
from .cpu_int8 import for_ort_int8
from .optimise import optimise, optimise_int8
from .trial_run import run_each_program

__all__ = ["write_cache"]


def write_cache(bundle: Bundle, folder: Path, progress: Callable[[str], None]) -> None:
    """Bake every model of a bundle: optimise the model for this CPU, and write the results into a folder.

    Args:
        bundle: an open bundle.
        folder: an empty folder for the files.
        progress: function called with the name of each model before the model is baked.

    Raises:
        BackendError: ONNX Runtime refuses a model.
    """
    files = _Files(folder)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".tensors-") as temporary:
        tensors = _Tensors(Path(temporary))
        models = _optimised_models(bundle, files, tensors, progress)
        parts = bake_parts(bundle, models, files.put_program, tensors.folder)
        placed, digest = tensors.write(folder / BLOB)
    files.specs[BLOB] = FileSpec(bytes=placed.bytes, sha256=digest)
    _put_constant_graphs(bundle, models, placed, files)
    baked = Baked(
        folder=folder,
        models=models,
        segments_of={
            name: tuple(segment for segment, spec in placed.segments.items() if name in spec.models) for name in models
        },
        tensors=placed.tensors,
        segments=placed.segments,
        forms=tensors.forms,
        files=files.specs,
    )
    copies = {
        name: measure_private_copy(baked, name, model.stages)
        for name, model in bundle.manifest.models.items()
        if model.precision == "int8"
    }
    run_each_program(bundle, baked)
    _forget(folder / BLOB)
    baked = baked.model_copy(update={"packings": copies, "stems": measure_stems(bundle, baked, parts)})
    write_record(baked)


class _Files:
    """Files of a device cache that is being written, with their sizes and hashes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.specs: dict[str, FileSpec] = {}

    def put(self, name: str, data: bytes) -> None:
        """Write a file of the device cache, and record its size and SHA-256."""
        (self.folder / name).write_bytes(data)
        self.specs[name] = FileSpec(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    def put_program(self, program: Program) -> None:
        """Write the file of a program that was optimised for this CPU, and record its size and SHA-256."""
        self.put(f"{program.id}.onnx", program.proto)


class _Tensors:
    """Distinct tensors of the baked programs, kept on disk because they may need more memory than this machine has."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._users = TensorUsers(self._keep)

    @property
    def forms(self) -> dict[str, FormSpec]:
        """Tensor id -> form, for kernels that are computed from tensors of the blob."""
        return self._users.forms()

    def add(self, array: NDArray[Any], model: str, form: KernelForm | None = None) -> str:
        """Store an array of weights that a baked model uses, or what it is computed from; return its tensor id."""
        if form is not None:
            tensor = tensor_id(form.kernel())
            self._users.add_form(model, tensor, form)
            return tensor
        tensor = tensor_id(array)
        if tensor not in self._users:
            self._keep(tensor, array)
        self._users.add(model, tensor, array)
        return tensor

    def write(self, path: Path) -> tuple[Layout, str]:
        """Write all baked tensors into a blob; return the offsets of tensors and segments, and the file's SHA-256."""
        placed = self._users.layout()
        return placed, write_blob(path, placed, self._take)

    def _keep(self, tensor: str, array: NDArray[Any]) -> None:
        np.save(self._file(tensor), array)

    def _take(self, tensor: str) -> NDArray[Any]:
        """Return a baked tensor, and delete the temporary file that holds it."""
        path = self._file(tensor)
        array: NDArray[Any] = np.load(path, allow_pickle=False)
        path.unlink()
        return array

    def _file(self, tensor: str) -> Path:
        """Return the path of the temporary file that holds a baked tensor."""
        return self.folder / f"{tensor}.npy"


def _optimised_models(
    bundle: Bundle, files: _Files, tensors: _Tensors, progress: Callable[[str], None]
) -> dict[str, dict[str, BakedStage]]:
    """Optimise every stage, write its program, and for an INT8 model also write its graph that computes in integers.

    Returns:
        Model -> stage -> program and weights of the stage.
    """
    several_scales = _read_with_several_scales(bundle)
    baker = FormBaker(bundle, tensors.folder)
    models: dict[str, dict[str, BakedStage]] = {}
    for name, model in bundle.manifest.models.items():
        progress(name)
        models[name] = {}
        for stage_name, stage in model.stages.items():
            path = bundle.file(stage.file)
            graph = read_model(path.read_bytes())
            weights_of = tensors_of(graph, stage)
            fp32, int8 = _converted(bundle, graph, weights_of, model.precision, several_scales)
            program, arrays = optimise(path, fp32, tensors.folder)
            files.put_program(program)
            if int8 is not None:
                files.put(f"{name}.{stage_name}.int8.onnx", optimise_int8(path, int8, tensors.folder))
            # A private copy of the weights is not computed from anything.
            bound = model.mode == "bound" and model.precision == "fp32"
            forms = baker.forms(path, graph, weights_of, program, arrays) if bound else [None] * len(arrays)
            weights = tuple(tensors.add(array, name, form) for array, form in zip(arrays, forms, strict=True))
            models[name][stage_name] = BakedStage(program=program.id, weights=weights)
    return models


def _read_with_several_scales(bundle: Bundle) -> frozenset[str]:
    """Return the ids of the int8 tensors of a bundle that several layers read, with different scales."""
    scales: dict[str, set[bytes]] = defaultdict(set)
    for model in bundle.manifest.models.values():
        for stage in model.stages.values() if model.precision == "int8" else ():
            graph = read_model(bundle.file(stage.file).read_bytes())
            tensors = tensors_of(graph, stage)
            for kernel, scale in kernel_scales(graph):
                if kernel in tensors:
                    scales[tensors[kernel]].add(scale.tobytes())
    return frozenset(tensor for tensor, different in scales.items() if len(different) > 1)


def _converted(
    bundle: Bundle, graph: Message, tensors: Mapping[str, str], precision: Precision, several_scales: Set[str]
) -> tuple[bytes | None, bytes | None]:
    """Return two conversions of a stage's graph: one that computes in float32, and one that computes in integers.

    In both, kernels that are computed from forms are constants. The first is None if the graph needs no conversion; the
    second is None if the model is not INT8.
    """
    plain = without_forms(graph, lambda name: bundle.tensor(tensors[name]))
    if precision == "fp32":
        return (None if plain is graph else plain.SerializeToString()), None
    graph = plain

    def values(tensor: Message) -> NDArray[Any]:
        """Return the values of an initializer, which lie in the blob or in the graph."""
        return bundle.tensor(tensors[tensor.name]) if tensor.name in tensors else tensor_array(tensor)

    fp32 = to_fp32(graph, values, {name for name, tensor in tensors.items() if tensor in several_scales})
    int8 = for_ort_int8(graph, values).SerializeToString() if precision == "int8" else None
    return fp32.SerializeToString(), int8


def _put_constant_graphs(
    bundle: Bundle, models: Mapping[str, Mapping[str, BakedStage]], placed: Layout, files: _Files
) -> None:
    """Write the graphs, with the weights inside, of models whose weights are constants (mode ``constant``)."""
    for name, model in bundle.manifest.models.items():
        if model.mode == "constant" and model.precision != "int8":
            for stage, made in models[name].items():
                proto = (files.folder / f"{made.program}.onnx").read_bytes()
                places = [placed.tensors[tensor] for tensor in made.weights]
                files.put(f"{name}.{stage}.onnx", with_constants(proto, BLOB, places))


def _forget(path: Path) -> None:
    """Drop a file that was just written from the page cache, so that the arena reads it into large pages later."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
