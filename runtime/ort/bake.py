"""Device cache of the ort-cpu backend: a bundle that is baked (optimised once and stored) for this CPU.

ONNX Runtime's fast convolutions want weights in a blocked layout (NCHWc) whose block depends on the CPU, and every
session makes a private copy of every weight in that layout. Baking does this once. Each model is optimised on the
device, the optimised graph is split into program and weights again, and the tensors in the new layout are hashed again,
so that equal kernels are stored once. Sessions are then made from programs with optimisation off, and weights are bound
at the addresses where the blob is mapped.

FP16 and INT8 models are baked in float32 (:mod:`.cpu_fp32`), so that a kernel that several models share stays one
tensor. The cache also has each INT8 model as a graph that computes in integers (:mod:`.cpu_int8`), optimised and with
its weights inside, and the run times of the float32 and the integer form (:mod:`.copy_times`).
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import onnxruntime as ort

from ...bundles.reader import Bundle
from ...bundles.verified import verify_once
from ...errors import BundleError
from ..device_cache import find_or_make, places
from ..memory.mapped_blob import forget
from .baked import BLOB, Baked, PrivateCopy, check_hashes, hashes, load_cache
from .optimise import DISABLED_OPTIMIZERS
from .write_cache import write_cache

__all__ = ["bake", "cpu_flags", "is_baked", "private_copies_of", "verify_cache"]

_LAYOUT = "8"
"""Version number of what baking writes. It must change when the same bundle would be baked differently."""


def bake(bundle: Bundle, progress: Callable[[str], None] = lambda model: None) -> Baked:
    """Return the device cache of a bundle for ONNX Runtime on this CPU; bake the bundle if there is none.

    The cache lies in the bundle's folder, or in the user's cache folder if the bundle's folder cannot be written.

    Args:
        bundle: an open bundle. Its hashes are verified before anything is baked from it.
        progress: function called with the name of each model before the model is baked.

    Raises:
        BundleError: a file of the bundle is damaged.
        BackendError: ONNX Runtime refuses a model.
    """
    return find_or_make(
        _folders(bundle),
        bundle,
        lambda folder: _verified(folder, bundle),
        lambda folder: write_cache(bundle, folder, progress),
    )


def cpu_flags() -> str:
    """Return the line of /proc/cpuinfo that lists what this CPU's instruction set has; empty if there is none."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def is_baked(bundle: Bundle) -> bool:
    """Return whether the bundle has a device cache for this CPU, whose files are there and of the right size."""
    for folder in _folders(bundle):
        with suppress(BundleError):
            load_cache(folder, bundle)
            return True
    return False


def private_copies_of(bundle: Bundle) -> dict[str, PrivateCopy]:
    """Return INT8 model -> size and times of its private copy on this CPU; empty if the bundle was not baked yet."""
    for folder in _folders(bundle):
        with suppress(BundleError):
            return dict(load_cache(folder, bundle).packings)
    return {}


def verify_cache(bundle: Bundle) -> list[Path]:
    """Check every byte of the caches that :func:`bake` would use on this device.

    Returns:
        Folders of the caches; empty if the bundle was not baked yet.

    Raises:
        BundleError: a file is missing or damaged.
    """
    found = [folder for folder in _folders(bundle) if os.path.lexists(folder)]
    try:
        for folder in found:
            check_hashes(load_cache(folder, bundle), bundle)
    except BundleError as error:
        raise BundleError(f"{error}; delete the folder {folder}, it is made again when it is needed") from error
    return found


def _verified(folder: Path, bundle: Bundle) -> Baked:
    """Return the record of a device cache whose files are whole: a damaged weight would give other results, silently.

    Raises:
        BundleError: a file is missing or damaged.
    """
    baked = load_cache(folder, bundle)
    if verify_once(hashes(baked, bundle), folder):
        # The pages in the page cache are small now. The arena maps large ones if it is the first to read the file.
        forget(baked.blob, 0, baked.files[BLOB].bytes)
    return baked


def _folders(bundle: Bundle) -> tuple[Path, Path]:
    """Return the folders that may hold a bundle's device cache, the preferred folder first."""
    return places(bundle, f"ort-cpu-{_device_key(bundle)}")


def _device_key(bundle: Bundle) -> str:
    """Return a hash of everything that baked graphs depend on, such as bundle, ONNX Runtime's version and CPU."""
    parts = (bundle.id, ort.__version__, platform.machine(), cpu_flags(), ",".join(DISABLED_OPTIMIZERS), _LAYOUT)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
