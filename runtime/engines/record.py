"""Record of the engines of a bundle in one folder: the file ``engines.json`` beside the engines."""

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
"""Mode of an engine: ``bound`` weights are inputs, ``refit`` weights are constants that a swap copies into it."""


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class ModeChoice(_Value):
    """Mode of a program and the reason for it. Times are medians on the device, None unless both engines were timed."""

    mode: EngineMode = "bound"
    bound_ms: float | None = None
    """Time of a run with weights as inputs."""
    refit_ms: float | None = None
    """Time of a run with weights as constants."""
    swap_ms: float | None = None
    """Time of copying another model's weights into the engine."""
    why: str = "not measured"
    """Reason why there are no times."""

    def __str__(self) -> str:
        if self.bound_ms is None or self.refit_ms is None or self.swap_ms is None:
            return self.why
        return f"{self.bound_ms:.3g} ms bound, {self.refit_ms:.3g} ms refit, {self.swap_ms:.3g} ms a swap"


class EngineFile(_Value):
    """File of one engine."""

    bytes: int
    sha256: str
    layers: int
    """Layers of the network that the engine was built from."""
    seconds: float
    """Build time in seconds."""


class EngineSpec(EngineFile):
    """Bound engine of a program, and its refitted engine if there is one."""

    inputs: int
    """Number of weights, which are inputs of the bound engine."""
    choice: ModeChoice = ModeChoice()
    refit: EngineFile | None = None
    """Engine that runs if the mode is ``refit`` and the budget has room for its private copy of the weights."""

    @model_validator(mode="after")
    def _whole(self) -> EngineSpec:
        if (self.refit is not None) != (self.choice.mode == "refit"):
            raise ValueError("an engine of the chosen mode is expected")
        return self


class Engines(_Value):
    """Engines of one bundle in one folder, with what built them."""

    folder: Path
    """Folder of the engines; not part of the file."""
    library: str
    """Backend whose library built the engines."""
    version: str
    """Version of that library."""
    targets: tuple[str, ...]
    """Compute capabilities that the engines run on."""
    device: str | None = None
    """Name of the card that the engines were built on and tuned for; None if they were built without it."""
    bundle: str
    """Id of the bundle."""
    engines: dict[Id, EngineSpec]
    """Program id -> its engines."""
    refused: dict[Id, str] = {}
    """Program id -> why the library refuses the program. Such programs have no weights, and run on the CPU."""

    @property
    def title(self) -> str:
        """Library, version and targets in one line, and the card that the engines were built on."""
        where = f", built on {self.device}" if self.device else ""
        return f"{self.library} {self.version} for {', '.join(self.targets)}{where}"

    @property
    def bytes(self) -> int:
        """Bytes of all engine files."""
        return sum(file.bytes for file in self.files.values())

    @property
    def files(self) -> dict[Path, EngineFile]:
        """Path of every engine file -> what the record says of the file."""
        found: dict[Path, EngineFile] = {}
        for program, spec in self.engines.items():
            found[self.path(program)] = spec
            if spec.refit is not None:
                found[self.path(program, "refit")] = spec.refit
        return found

    def path(self, program: str, mode: EngineMode = "bound") -> Path:
        """Return the path of a program's engine."""
        return engine_path(self.folder, program, mode)


def engine_path(folder: Path, program: str, mode: EngineMode) -> Path:
    """Return the path of a program's engine in a folder."""
    return folder / (f"{program}.engine" if mode == "bound" else f"{program}.refit.engine")


def read_engines(folder: Path, bundle: Bundle) -> Engines:
    """Read the record of a folder, and check every byte of its engines.

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
