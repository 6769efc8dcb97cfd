"""Bake a bundle for this CPU: the device cache of the ort-cpu backend.

ONNX Runtime's fast convolutions want weights in a blocked layout (NCHWc) whose block depends on the CPU, and it makes a
private copy of every weight in that layout in every session. Baking does it once: each model is optimised on the
device, the optimised graph is split into program and weights again, and the re-laid tensors are hashed again, so
that equal kernels are stored once. Sessions are then made from programs with optimisation off, and weights are
bound where they are mapped.

Models in FP16 and INT8 are baked in float32 (:mod:`.precision`): kernels that several of them share stay one tensor.
Of an INT8 model there is also a graph with int8 arithmetic, optimised and with its weights inside, and how long both
run (:mod:`.packing`).
"""

from __future__ import annotations

import hashlib
import os
import platform
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Set
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ...bundles.blob import layout, tensor_id, write_blob
from ...bundles.manifest import FileSpec, Precision, Stage
from ...bundles.onnx_wire import Message, tensor_array
from ...bundles.program import read_model, tensors_of, with_constants
from ...bundles.reader import Bundle, view
from ...errors import BundleError
from .. import device_cache as cache
from ..device_cache import BLOB, CACHE_RECORD, Baked, BakedStage, PrivateCopy
from .cpu_precision import for_ort_int8, kernel_scales, to_fp32
from .optimise import DISABLED_OPTIMIZERS, optimise, optimise_int8
from .private_copies import cpu_times
from .session import Bound, open_baked

__all__ = ["Baked", "BakedStage", "bake", "packings", "verify_cache"]

_LAYOUT = "4"
"""Changed whenever this module would bake the same bundle differently."""


def bake(bundle: Bundle, progress: Callable[[str], None] = lambda model: None) -> Baked:
    """The device cache of a bundle for ONNX Runtime on this CPU; made where it is missing.

    It lies in the bundle's folder, or in the user's cache folder where that cannot be written.

    Args:
        bundle: an open bundle. Its hashes are verified before anything is baked from it.
        progress: called with each model's name before it is baked.

    Raises:
        BundleError: a file of the bundle is damaged.
        BackendError: ONNX Runtime refuses a model.
    """
    return cache.find_or_make(
        _folders(bundle),
        bundle,
        lambda folder: cache.load_cache(folder, bundle),
        lambda folder: _write(bundle, folder, progress),
    )


def packings(bundle: Bundle) -> dict[str, PrivateCopy]:
    """What was measured of a bundle's INT8 models on this CPU; nothing where nothing was baked yet."""
    for folder in _folders(bundle):
        with suppress(BundleError):
            return dict(cache.load_cache(folder, bundle).packings)
    return {}


def verify_cache(bundle: Bundle) -> list[Path]:
    """Check every byte of the caches that :func:`bake` would use on this device.

    Returns:
        Their folders; none where nothing was baked yet.

    Raises:
        BundleError: a file is missing or damaged.
    """
    found = [folder for folder in _folders(bundle) if os.path.lexists(folder)]
    try:
        for folder in found:
            cache.check_hashes(cache.load_cache(folder, bundle), bundle)
    except BundleError as error:
        raise BundleError(f"{error}; delete the folder {folder}, it is made again when it is needed") from error
    return found


def _folders(bundle: Bundle) -> tuple[Path, Path]:
    """Where the cache may lie, the preferred place first."""
    return cache.places(bundle, f"ort-cpu-{_device_key(bundle)}")


def _device_key(bundle: Bundle) -> str:
    """What a baked graph depends on: the bundle, the runtime's version and the CPU's vector units."""
    flags = ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    parts = (bundle.id, ort.__version__, platform.machine(), flags, ",".join(DISABLED_OPTIMIZERS), _LAYOUT)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _write(bundle: Bundle, folder: Path, progress: Callable[[str], None]) -> None:
    content = bundle.manifest
    apart = _scaled_apart(bundle)
    models: dict[str, dict[str, BakedStage]] = defaultdict(dict)
    users: dict[str, set[str]] = defaultdict(set)
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
    files: dict[str, FileSpec] = {}

    def put(name: str, data: bytes) -> None:
        (folder / name).write_bytes(data)
        files[name] = FileSpec(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".tensors-") as temporary:
        store = Path(temporary)
        for name, model in content.models.items():
            progress(name)
            for stage_name, stage in model.stages.items():
                path = bundle.file(stage.file)
                wide, narrow = _graphs(bundle, stage, model.precision, apart)
                program, arrays = optimise(path, wide, store)
                put(f"{program.id}.onnx", program.proto)
                if narrow is not None:
                    put(f"{name}.{stage_name}.int8.onnx", optimise_int8(path, narrow, store))
                ids = []
                for array in arrays:
                    tensor = tensor_id(array)
                    ids.append(tensor)
                    users[tensor].add(name)
                    if tensor not in shapes:
                        shapes[tensor] = (array.dtype.name, array.shape)
                        # On disk, not in memory: a bundle may be larger than the box that bakes it.
                        np.save(store / f"{tensor}.npy", array)
                models[name][stage_name] = BakedStage(program=program.id, weights=tuple(ids))
        placed = layout(shapes, users)
        digest = write_blob(folder / BLOB, placed, lambda tensor: _take(store / f"{tensor}.npy"))
        files[BLOB] = FileSpec(bytes=placed.bytes, sha256=digest)
    for name, model in content.models.items():
        if model.mode == "constant" and model.precision != "int8":
            for stage_name, made in models[name].items():
                proto = (folder / f"{made.program}.onnx").read_bytes()
                places = [placed.tensors[tensor] for tensor in made.weights]
                put(f"{name}.{stage_name}.onnx", with_constants(proto, BLOB, places))
    record = Baked(
        folder=folder,
        models=dict(models),
        segments_of={
            name: tuple(segment for segment, spec in placed.segments.items() if name in spec.models) for name in models
        },
        tensors=placed.tensors,
        segments=placed.segments,
        files=files,
    )
    compared = {
        name: _compared(record, name, model.stages)
        for name, model in content.models.items()
        if model.precision == "int8"
    }
    _forget(folder / BLOB)
    record = record.model_copy(update={"packings": compared})
    (folder / CACHE_RECORD).write_text(record.model_dump_json(exclude={"folder"}, indent=1))


def _forget(path: Path) -> None:
    """Drop a file that was just written from the page cache: read again by the arena, its pages will be large."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _take(path: Path) -> NDArray[Any]:
    array: NDArray[Any] = np.load(path, allow_pickle=False)
    path.unlink()
    return array


def _scaled_apart(bundle: Bundle) -> frozenset[str]:
    """Int8 tensors of the bundle that are read by several scales."""
    scales: dict[str, set[bytes]] = defaultdict(set)
    for model in bundle.manifest.models.values():
        for stage in model.stages.values() if model.precision == "int8" else ():
            graph = read_model(bundle.file(stage.file).read_bytes())
            tensors = tensors_of(graph, stage)
            for kernel, scale in kernel_scales(graph):
                if kernel in tensors:
                    scales[tensors[kernel]].add(scale.tobytes())
    return frozenset(tensor for tensor, different in scales.items() if len(different) > 1)


def _graphs(bundle: Bundle, stage: Stage, precision: Precision, apart: Set[str]) -> tuple[bytes | None, bytes | None]:
    """A stage in float32, where the bundle's file is not, and in uint8, where it is INT8."""
    if precision == "fp32":
        return None, None
    graph = read_model(bundle.file(stage.file).read_bytes())
    tensors = tensors_of(graph, stage)

    def values(tensor: Message) -> NDArray[Any]:
        return bundle.tensor(tensors[tensor.name]) if tensor.name in tensors else tensor_array(tensor)

    wide = to_fp32(graph, values, {name for name, tensor in tensors.items() if tensor in apart})
    narrow = for_ort_int8(graph, values).SerializeToString() if precision == "int8" else None
    return wide.SerializeToString(), narrow


def _compared(baked: Baked, model: str, stages: Mapping[str, Stage]) -> PrivateCopy:
    """Run an INT8 model both ways, on noise: one image, one row of what has any number of rows."""
    blob = np.memmap(baked.blob, np.uint8, "r")
    random = np.random.default_rng(0)
    copies: dict[str, int] = {}
    bound_ms = packed_ms = 0.0
    for name, stage in stages.items():
        made = baked.models[model][name]
        weights = [ort.OrtValue.ortvalue_from_numpy(view(blob, baked.tensors[tensor])) for tensor in made.weights]
        bound = Bound(open_baked(baked.program(made.program), 1, prepack=False), weights)
        packed = Bound(open_baked(baked.packed(model, name), 1, prepack=True))
        inputs = {
            port.name: random.random([1 if isinstance(size, str) else size for size in port.shape]).astype(port.dtype)
            for port in stage.inputs
        }
        times = cpu_times([partial(bound.run, inputs), partial(packed.run, inputs)])
        bound_ms, packed_ms = bound_ms + times[0], packed_ms + times[1]
        graph = read_model(baked.packed(model, name).read_bytes()).graph
        copies[name] = sum(tensor_array(tensor).nbytes for tensor in graph.initializer)
    return PrivateCopy(copies=copies, bound_ms=bound_ms, packed_ms=packed_ms)
