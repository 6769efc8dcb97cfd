"""What is known of the engines of a bundle that lie in one folder: ``engines.json`` beside them."""

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
"""Weights are inputs of the engine, or constants that are copied into it."""


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class ModeChoice(_Value):
    """The mode that a program runs in, and why; times are medians on the device, and there where both were timed."""

    mode: EngineMode = "bound"
    bound_ms: float | None = None
    """Of a run with weights as inputs."""
    refit_ms: float | None = None
    """Of a run with weights as constants."""
    swap_ms: float | None = None
    """Of copying another model's weights into the engine."""
    why: str = "not measured"
    """Why they are not there."""

    def __str__(self) -> str:
        if self.bound_ms is None or self.refit_ms is None or self.swap_ms is None:
            return self.why
        return f"{self.bound_ms:.3g} ms bound, {self.refit_ms:.3g} ms refit, {self.swap_ms:.3g} ms a swap"


class EngineFile(_Value):
    """One engine."""

    bytes: int
    sha256: str
    layers: int
    """Of the network that it was built from."""
    seconds: float
    """That building it took."""


class EngineSpec(EngineFile):
    """A program's engine with weights as inputs, and what there is beside it."""

    inputs: int
    """Weights that are inputs."""
    choice: ModeChoice = ModeChoice()
    refit: EngineFile | None = None
    """The one that runs where mode ``refit`` was chosen, if there is room for its copy of the weights."""

    @model_validator(mode="after")
    def _whole(self) -> EngineSpec:
        if (self.refit is not None) != (self.choice.mode == "refit"):
            raise ValueError("an engine of the chosen mode is expected")
        return self


class Engines(_Value):
    """What the folder holds; ``folder`` is where."""

    folder: Path
    library: str
    version: str
    targets: tuple[str, ...]
    """Compute capabilities that the engines run on."""
    device: str | None = None
    """The card that they were built on and tuned for, if they were."""
    bundle: str
    """Its id."""
    engines: dict[Id, EngineSpec]
    """By program."""
    refused: dict[Id, str] = {}
    """Programs without weights that the library refuses, and why: what they do is left to the CPU."""

    @property
    def title(self) -> str:
        """What built them, and for what."""
        where = f", built on {self.device}" if self.device else ""
        return f"{self.library} {self.version} for {', '.join(self.targets)}{where}"

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files.values())

    @property
    def files(self) -> dict[Path, EngineFile]:
        """Every engine's file."""
        found: dict[Path, EngineFile] = {}
        for program, spec in self.engines.items():
            found[self.path(program)] = spec
            if spec.refit is not None:
                found[self.path(program, "refit")] = spec.refit
        return found

    def path(self, program: str, mode: EngineMode = "bound") -> Path:
        return engine_path(self.folder, program, mode)


def engine_path(folder: Path, program: str, mode: EngineMode) -> Path:
    """Where a program's engine lies."""
    return folder / (f"{program}.engine" if mode == "bound" else f"{program}.refit.engine")


def read_engines(folder: Path, bundle: Bundle) -> Engines:
    """Read a folder, with every byte of its engines.

    Raises:
        BundleError: a file is missing, not a plain file or damaged, or belongs to another bundle.
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
