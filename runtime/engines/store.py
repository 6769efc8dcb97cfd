"""Engines of a bundle in the device cache: one folder per library, version of the library, and set of devices."""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter

from ...bundles.manifest import ModelSpec, Stage
from ...bundles.program import read_model, split_model
from ...bundles.reader import CACHE, Bundle
from ...errors import BackendError, BundleError
from .. import device_cache as cache
from ..device import Device
from .build import Built, build_engine
from .choice import pick
from .library import LIBRARIES, Library
from .record import ENGINES_RECORD, EngineFile, Engines, EngineSpec, ModeChoice, engine_path, read_engines
from .timings import Timings

__all__ = ["BuildProgress", "build_engines", "engines_for", "engines_in", "rows_of"]

_LAYOUT = "2"
"""Version number of how engines are built and stored. Change it when the same bundle would get different engines."""
_FOLDER = re.compile(rf"({'|'.join(LIBRARIES)})-[0-9a-f]{{16}}")

BuildProgress = Callable[[str, int, int], None]
"""Function called before the engine of a program is built.

Arguments: name of a model that has the program, number of the program (from 1), and number of all programs.
"""


def build_engines(
    bundle: Bundle,
    library: Library,
    targets: Sequence[str],
    progress: BuildProgress = lambda model, number, count: None,
) -> Engines:
    """Return the engines of all programs of a bundle for given targets; build them if one is missing or damaged.

    Engines are kept in the bundle's folder, or in the user's cache folder if the bundle cannot be written. The hashes
    of the bundle are verified before anything is built from it.

    Args:
        bundle: an open bundle.
        library: TensorRT or TensorRT for RTX, which builds the engines.
        targets: compute capabilities to build for, such as ``sm86``, in any order.
        progress: function called before the engine of each program is built; see :data:`BuildProgress`.

    Raises:
        InputError: an engine for one of the targets cannot be built here.
        BundleError: a file of the bundle is damaged.
        BackendError: the library refuses a program, or no folder can be written.
    """
    library.check_targets(targets)
    targets = [target for target in library.targets if target in targets]
    return _make(_folders(bundle, library, targets), bundle, library, targets, None, progress)


def engines_for(
    bundle: Bundle,
    library: Library,
    device: Device,
    progress: BuildProgress = lambda model, number, count: None,
    *,
    fresh: bool = False,
) -> Engines:
    """Return the engines of a bundle for this machine's device: those built on it, or those that came with the bundle.

    If there are none, engines are built, and the mode of each program is chosen by measuring, see :mod:`.choice`.
    Engines that came with the bundle are always bound.

    Args:
        bundle: an open bundle.
        library: TensorRT or TensorRT for RTX, which runs the engines.
        device: this machine's device.
        progress: function called before the engine of each program is built; see :data:`BuildProgress`.
        fresh: whether to build all engines again, because the library cannot use those that exist.

    Raises:
        BundleError: a file of the bundle is damaged.
        BackendError: the library refuses a program, or no folder can be written.
    """
    folders = _folders(bundle, library, (device.target, device.name))
    if fresh:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
    else:
        for folder in (*folders, *_beside(bundle)):
            with contextlib.suppress(BundleError):
                found = read_engines(folder, bundle)
                if folder in folders or _fits(found, library, device):
                    return found
    return _make(folders, bundle, library, (), device, progress)


def engines_in(bundle: Bundle) -> list[Engines]:
    """Return all engines in the bundle's folder, after verifying the size and SHA-256 of every engine file.

    Raises:
        BundleError: a file is missing or damaged, or belongs to another bundle.
    """
    try:
        return [read_engines(folder, bundle) for folder in _beside(bundle)]
    except BundleError as error:
        raise BundleError(f"{error}; delete its folder, engines are built again when they are needed") from error


def rows_of(bundle: Bundle) -> dict[str, dict[str, int]]:
    """Return program -> input -> maximum size of its first dimension, for inputs whose first dimension is dynamic.

    A program takes one frame at a time, or as many regions as a two-stage detector may propose.
    """
    rows: dict[str, dict[str, int]] = {}
    for model in bundle.manifest.models.values():
        for name, stage in model.stages.items():
            most = _most(model, name)
            found = rows.setdefault(stage.program, {})
            for port in stage.inputs:
                if isinstance(port.shape[0], str):
                    found[port.name] = max(most, found.get(port.name, 1))
    return rows


def _most(model: ModelSpec, stage: str) -> int:
    """Return the maximum number of rows (frames or regions) that a stage of a model takes at once."""
    regions: int = getattr(model.decode, "post_nms_topk", 1)
    return 1 if stage == "main" else regions


def _fits(engines: Engines, library: Library, device: Device) -> bool:
    """Return whether engines, built without a device, can run on ``device`` with this version of ``library``."""
    return (
        (engines.library, engines.version) == (library.backend, library.version)
        and device.target in engines.targets
        and engines.device is None
    )


def _folders(bundle: Bundle, library: Library, devices: Sequence[str]) -> tuple[Path, Path]:
    """Return the folders that may hold a bundle's engines for some devices, the preferred folder first."""
    parts = (bundle.id, library.version, *devices, _LAYOUT)
    name = f"{library.backend}-{hashlib.sha256(chr(10).join(parts).encode()).hexdigest()[:16]}"
    return cache.places(bundle, name)


def _beside(bundle: Bundle) -> list[Path]:
    """Return the folders of engines inside the bundle's folder."""
    return sorted(path for path in (bundle.path / CACHE).glob("*") if _FOLDER.fullmatch(path.name))


def _make(
    folders: Sequence[Path],
    bundle: Bundle,
    library: Library,
    targets: Sequence[str],
    device: Device | None,
    progress: BuildProgress,
) -> Engines:
    """Return the engines in the first complete folder; if no folder is complete, build in the first writable one."""
    return cache.find_or_make(
        folders,
        bundle,
        lambda folder: read_engines(folder, bundle),
        lambda folder: _fill(folder, bundle, library, targets, device, progress),
    )


def _stages(bundle: Bundle) -> dict[str, tuple[str, Stage]]:
    """Return program -> first model that has the program, and the model's stage with the program."""
    found: dict[str, tuple[str, Stage]] = {}
    for name, model in bundle.manifest.models.items():
        for stage in model.stages.values():
            found.setdefault(stage.program, (name, stage))
    return found


def _fill(
    folder: Path,
    bundle: Bundle,
    library: Library,
    targets: Sequence[str],
    device: Device | None,
    progress: BuildProgress,
) -> None:
    """Build the engines of all programs into a folder, and write their record.

    Raises:
        BackendError: the library refuses a program with weights.
    """
    stages, rows = _stages(bundle), rows_of(bundle)
    timings = None if device is None else _timings(bundle, library, device)
    made: dict[str, EngineSpec] = {}
    refused: dict[str, str] = {}
    for number, (program, (model, stage)) in enumerate(stages.items(), 1):
        progress(model, number, len(stages))
        began = perf_counter()
        proto = split_model(read_model(bundle.file(stage.file).read_bytes())).proto
        try:
            built = build_engine(library, proto, rows[program], targets, timings=timings)
        except BackendError as error:
            if stage.weights:
                raise BackendError(f"model {model}, {stage.file}: {error}") from error
            refused[program] = str(error)
            continue
        file = _write(engine_path(folder, program, "bound"), built, began)
        choice, refit, began = ModeChoice(), None, perf_counter()
        if not stage.weights:
            choice = ModeChoice(why="no weights")
        elif device is not None:
            choice, refit = pick(bundle, stage, proto, rows[program], built, library, device, timings)
        made[program] = EngineSpec(
            **file.model_dump(),
            inputs=len(stage.weights),
            choice=choice,
            refit=refit and _write(engine_path(folder, program, "refit"), refit, began),
        )
    record = Engines(
        folder=folder,
        library=library.backend,
        version=library.version,
        targets=tuple(targets) if device is None else (device.target,),
        device=None if device is None else device.name,
        bundle=bundle.id,
        engines=made,
        refused=refused,
    )
    (folder / ENGINES_RECORD).write_text(record.model_dump_json(exclude={"folder"}, indent=1))


def _write(path: Path, built: Built, began: float) -> EngineFile:
    """Write an engine file, and return the file's entry for the record."""
    path.write_bytes(built.data)
    return EngineFile(
        bytes=len(built.data),
        sha256=hashlib.sha256(built.data).hexdigest(),
        layers=built.layers,
        seconds=round(perf_counter() - began, 3),
    )


def _timings(bundle: Bundle, library: Library, device: Device) -> Timings | None:
    """Return the card's timing cache, which all bundles share; None for TensorRT for RTX, which times no kernels."""
    if library.backend == "tensorrt-rtx":
        return None
    name = hashlib.sha256(f"{library.version}\n{device.target}\n{device.name}".encode()).hexdigest()[:16]
    _, kept = cache.places(bundle, f"{library.backend}-{name}.timings")
    return Timings(kept)
