"""The device cache of the ort-cpu backend: a bundle that is baked for this CPU.

ONNX Runtime's fast convolutions want weights in a blocked layout (NCHWc) whose block depends on the CPU, and every
session makes a private copy of every weight in that layout. Baking does this once. Each model is optimised on the
device, the optimised graph is split into program and weights again, and the re-laid tensors are hashed again, so that
equal kernels are stored once. Sessions are then made from programs with optimisation off, and weights are bound where
they are mapped.

FP16 and INT8 models are baked in float32 (:mod:`.cpu_fp32`), so that a kernel that several of them share stays one
tensor. The cache also has each INT8 model as a graph that computes in integers (:mod:`.cpu_int8`), optimised and with
its weights inside, and the times that both forms take (:mod:`.copy_times`).
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
from ...errors import BundleError
from ..device_cache import find_or_make, places
from .baked import Baked, PrivateCopy, check_hashes, load_cache
from .optimise import DISABLED_OPTIMIZERS
from .write_cache import write_cache

__all__ = ["bake", "private_copies_of", "verify_cache"]

_LAYOUT = "5"
"""Version of what baking writes; it changes whenever the same bundle would be baked differently."""


def bake(bundle: Bundle, progress: Callable[[str], None] = lambda model: None) -> Baked:
    """Return the device cache of a bundle for ONNX Runtime on this CPU; bake the bundle if there is none.

    The cache lies in the bundle's folder, or in the user's cache folder if the bundle's cannot be written.

    Args:
        bundle: an open bundle. Its hashes are verified before anything is baked from it.
        progress: called with each model's name before it is baked.

    Raises:
        BundleError: a file of the bundle is damaged.
        BackendError: ONNX Runtime refuses a model.
    """
    return find_or_make(
        _folders(bundle),
        bundle,
        lambda folder: load_cache(folder, bundle),
        lambda folder: write_cache(bundle, folder, progress),
    )


def private_copies_of(bundle: Bundle) -> dict[str, PrivateCopy]:
    """Return model -> private copy as measured on this CPU, for INT8 models; empty if the bundle was not baked yet."""
    for folder in _folders(bundle):
        with suppress(BundleError):
            return dict(load_cache(folder, bundle).packings)
    return {}


def verify_cache(bundle: Bundle) -> list[Path]:
    """Check every byte of the caches that :func:`bake` would use on this device.

    Returns:
        Folders of the caches; none if the bundle was not baked yet.

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


def _folders(bundle: Bundle) -> tuple[Path, Path]:
    """Return the folders where the cache may lie, the preferred one first."""
    return places(bundle, f"ort-cpu-{_device_key(bundle)}")


def _device_key(bundle: Bundle) -> str:
    """Return a hash of all that baked graphs depend on, such as the bundle, ONNX Runtime's version and the CPU."""
    flags = ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    parts = (bundle.id, ort.__version__, platform.machine(), flags, ",".join(DISABLED_OPTIMIZERS), _LAYOUT)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
