"""Record of the engines of a bundle in one folder: the file ``engines.json`` in that folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, model_validator

from ...bundles.manifest import Id
from ...bundles.reader import Bundle, sha256_of
from ...errors import BundleError
from .. import device_cache as cache

__all__ = [
    "ENGINES_RECORD",
    "EngineFile",
    "EngineMode",
    "EngineSpec",
    "Engines",
    "ModeChoice",
    "engine_path",
    "read_engines",
]

ENGINES_RECORD = "engines.json"

EngineMode = Literal["bound", "refit"]
"""Mode of an engine, which says how the engine gets its weights.

``bound``: weights are inputs. ``refit``: weights are constants; a swap copies another model's weights into the engine.
"""


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class ModeChoice(_Value):
    """Mode of a program's engine, and the times that decided the mode or the reason why no times were measured.

    Times are medians on the device, and None unless both a bound and a refitted engine were timed.
    """

    mode: EngineMode = "bound"
    bound_ms: float | None = None
    """Milliseconds of a run of the program's engine with weights as inputs."""
    refit_ms: float | None = None
    """Milliseconds of a run of the program's engine with weights as constants."""
    swap_ms: float | None = None
    """Milliseconds of copying another model's weights into the refitted engine."""
    why: str = "not measured"
    """Reason why no run times of the engines were measured."""

    def __str__(self) -> str:
        if self.bound_ms is None or self.refit_ms is None or self.swap_ms is None:
            return self.why
        return f"{self.bound_ms:.3g} ms bound, {self.refit_ms:.3g} ms refit, {self.swap_ms:.3g} ms a swap"


class EngineFile(_Value):
    """Size, SHA-256 and build data of one engine file."""

    bytes: int
    sha256: str
    layers: int
    """Number of layers of the TensorRT network that the engine was built from."""
    seconds: float
    """Seconds that building the engine took."""


class EngineSpec(EngineFile):
    """Bound engine of a program, and its refitted engine if there is one."""

    inputs: int
    """Number of the program's weights, which are inputs of the bound engine."""
    choice: ModeChoice = ModeChoice()
    refit: EngineFile | None = None
    """Refitted engine, which runs if the budget has room for its private copy of weights; None in mode ``bound``."""

    @model_validator(mode="after")
    def _whole(self) -> EngineSpec:
        if (self.refit is not None) != (self.choice.mode == "refit"):
            raise ValueError("an engine of the chosen mode is expected")
        return self


class Engines(_Value):
    """Engines of one bundle in one folder, with the library and the device that they were built with."""

    folder: Path
    """Folder of the engines; not stored in the record's file."""
    library: str
    """Name of the backend whose library built the engines."""
    version: str
    """Version of the library (TensorRT or TensorRT for RTX) that built the engines."""
    targets: tuple[str, ...]
    """Compute capabilities of the devices that the engines run on."""
    device: str | None = None
    """Name of the card that the engines were built on and tuned for; None if they were built without a card."""
    bundle: str
    """Id of the bundle that the engines were built from."""
    engines: dict[Id, EngineSpec]
    """Program id -> engine files and mode of the program."""
    refused: dict[Id, str] = {}
    """Program id -> reason why the library (TensorRT or TensorRT for RTX) refuses the program.

    Only programs without weights may be refused. ONNX Runtime runs them on the CPU.
    """

    @property
    def title(self) -> str:
        """One line of text about the engines: library, version, targets, and the card that they were built on."""
        where = f", built on {self.device}" if self.device else ""
        return f"{self.library} {self.version} for {', '.join(self.targets)}{where}"

    @property
    def bytes(self) -> int:
        """Total bytes of all engine files."""
        return sum(file.bytes for file in self.files.values())

    @property
    def files(self) -> dict[Path, EngineFile]:
        """Path of every engine file -> size, SHA-256 and build data of the file."""
        found: dict[Path, EngineFile] = {}
        for program, spec in self.engines.items():
            found[self.path(program)] = spec
            if spec.refit is not None:
                found[self.path(program, "refit")] = spec.refit
        return found

    def path(self, program: str, mode: EngineMode = "bound") -> Path:
        """Return the path of the file that holds the engine of a program in one mode."""
        return engine_path(self.folder, program, mode)


def engine_path(folder: Path, program: str, mode: EngineMode) -> Path:
    """Return the path of the file in a folder that holds the engine of a program in one mode."""
    return folder / (f"{program}.engine" if mode == "bound" else f"{program}.refit.engine")


def read_engines(folder: Path, bundle: Bundle) -> Engines:
    """Read the record of the engines in a folder, and verify the size and SHA-256 of every engine file.

    Raises:
        BundleError: a file is missing, damaged, or not a regular file; or the engines belong to another bundle.
    """
    cache.check_folder(folder)
    record = folder / ENGINES_RECORD
    cache.plain_size(record)
    try:
        engines = Engines.model_validate({**json.loads(record.read_bytes()), "folder": folder})
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise BundleError(f"{record}: is damaged") from error
    if engines.bundle != bundle.id or {*engines.engines, *engines.refused} != bundle.manifest.programs.keys():
        raise BundleError(f"{record}: these are not the engines of this bundle")
    for path, file in engines.files.items():
        # An engine is code that the device will run.
        if cache.plain_size(path) != file.bytes or sha256_of(path) != file.sha256:
            raise BundleError(f"{path}: content is damaged")
    return engines
