"""Bake a bundle for this CPU: the device cache of the ort-cpu backend.

ONNX Runtime's fast convolutions want weights in a blocked layout (NCHWc) whose block depends on the CPU, and it makes a
private copy of every weight in that layout in every session. Baking does it once: each model is optimised on the
device, the optimised graph is split into program and weights again, and the re-laid tensors are hashed again, so
that equal kernels are stored once. Sessions are then made from programs with optimisation off, and weights are
bound where they are mapped.
"""

from __future__ import annotations

import hashlib
import os
import platform
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ..errors import BackendError, BundleError
from . import cache
from .blob import layout, tensor_id, write
from .bundle import Bundle
from .cache import BLOB, RECORD, Baked, BakedStage
from .manifest import FileSpec, Stage
from .onnx_wire import DTYPES, Message, tensor_array
from .program import read, split, with_constants
from .session import open_session, quiet

__all__ = ["DISABLED_OPTIMIZERS", "Baked", "BakedStage", "bake", "verify_cache"]

DISABLED_OPTIMIZERS = [
    # Fuses Pad(0) -> MaxPool into padding with -inf, which is another function (Tiny-YOLOv3: error 4e-3).
    "Pad_Fusion",
    # These would scale a shared kernel by a private factor. What may be folded, the compiler has folded.
    "ConvBNFusion",
    "ConvMulFusion",
    "ConvAddFusion",
]

_LAYOUT = "3"
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
    return cache.make(
        _folders(bundle),
        bundle,
        lambda folder: cache.load(folder, bundle),
        lambda folder: _write(bundle, folder, progress),
    )


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
            cache.check_hashes(cache.load(folder, bundle), bundle)
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
    models: dict[str, dict[str, BakedStage]] = defaultdict(dict)
    users: dict[str, set[str]] = defaultdict(set)
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
    files: dict[str, FileSpec] = {}

    def put(name: str, data: bytes) -> None:
        (folder / name).write_bytes(data)
        files[name] = FileSpec(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".tensors-") as temporary:
        store = Path(temporary)
        for name, model in bundle.manifest.models.items():
            progress(name)
            for stage_name, stage in model.stages.items():
                program, arrays = _optimise(bundle, stage, store)
                put(f"{program.id}.onnx", program.proto)
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
        digest = write(folder / BLOB, placed, lambda tensor: _take(store / f"{tensor}.npy"))
        files[BLOB] = FileSpec(bytes=placed.bytes, sha256=digest)
        _forget(folder / BLOB)
    segments_of = {
        name: tuple(segment for segment, spec in placed.segments.items() if name in spec.models) for name in models
    }
    for name, model in bundle.manifest.models.items():
        if model.mode == "constant":
            for stage_name, made in models[name].items():
                proto = (folder / f"{made.program}.onnx").read_bytes()
                places = [placed.tensors[tensor] for tensor in made.weights]
                put(f"{name}.{stage_name}.onnx", with_constants(proto, BLOB, places))
    record = Baked(
        folder=folder,
        models=dict(models),
        segments_of=segments_of,
        tensors=placed.tensors,
        segments=placed.segments,
        files=files,
    )
    (folder / RECORD).write_text(record.model_dump_json(exclude={"folder"}, indent=1))


def _forget(path: Path) -> None:
    """Drop a file that was just written from the page cache: read again by the arena, its pages will be large."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _take(path: Path) -> NDArray[Any]:
    array: NDArray[Any] = np.load(path, allow_pickle=False)
    path.unlink()
    return array


def _optimise(bundle: Bundle, stage: Stage, folder: Path) -> tuple[Any, list[NDArray[Any]]]:
    """Let ONNX Runtime optimise a stage for this CPU and split the result."""
    options = quiet(threads=1)
    optimised = folder / "optimised.onnx"
    options.optimized_model_filepath = str(optimised)
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "optimised.bin")
    options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    open_session(bundle.file(stage.file), options, disabled_optimizers=DISABLED_OPTIMIZERS)
    model = read(optimised.read_bytes())
    program = split(model)
    external = folder / "optimised.bin"
    data = np.memmap(external, np.uint8, "r") if external.exists() and external.stat().st_size else None
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    arrays = [_values(initializers[name], data) for name in program.weights]
    del data
    optimised.unlink()
    external.unlink(missing_ok=True)
    return program, arrays


def _values(tensor: Message, data: NDArray[np.uint8] | None) -> NDArray[Any]:
    """A copy of an initializer's values."""
    if tensor.data_location != 1:
        return np.array(tensor_array(tensor))
    place = {entry.key: entry.value for entry in tensor.external_data}
    offset, length = int(place.get("offset", 0)), int(place.get("length", 0))
    if data is None or offset + length > data.size:
        raise BackendError(f"weight {tensor.name}: ONNX Runtime did not write its values")
    return np.array(data[offset : offset + length].view(DTYPES[tensor.data_type]).reshape(tuple(tensor.dims)))
