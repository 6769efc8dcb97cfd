"""The record of a baked bundle: which programs, tensors and segments the device cache of ort-cpu holds."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from ...bundles.consistency import check_spans, check_weights
from ...bundles.manifest import FileSpec, Id, Name, SegmentSpec, Size, TensorSpec
from ...bundles.reader import Bundle, sha256_of
from ...errors import BundleError
from ..device_cache import check_folder, plain_size

__all__ = ["BLOB", "CACHE_RECORD", "Baked", "BakedStage", "PrivateCopy", "check_hashes", "load_cache"]

BLOB = "weights.bin"
"""Name of the file with all baked weights."""
CACHE_RECORD = "cache.json"
"""Name of the file that a :class:`Baked` is written to."""

_WORTH = 0.95
"""Share of a bound run's time that a run on a private copy must stay below: measured times are 5 % uncertain."""


class PrivateCopy(BaseModel):
    """Cost and gain of running an INT8 model on a private copy of its kernels, in int8 arithmetic."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)
    copies: dict[Name, Size]
    """Stage -> bytes of weights that the stage's session holds."""
    bound_ms: float = Field(ge=0)
    """Milliseconds of CPU time of a float32 run on shared weights, for one image on one thread."""
    packed_ms: float = Field(ge=0)
    """Milliseconds of CPU time of an int8 run on the private copy, for one image on one thread."""

    @property
    def bytes(self) -> int:
        """Bytes of the model's private copies."""
        return sum(self.copies.values())

    @property
    def gain_ms(self) -> float:
        """Milliseconds of CPU time that the private copy saves in a run."""
        return self.bound_ms - self.packed_ms

    @property
    def is_faster(self) -> bool:
        """Whether the private copy is faster by more than times are uncertain."""
        return self.packed_ms < _WORTH * self.bound_ms


class BakedStage(BaseModel):
    """One stage of a baked model."""

    model_config = ConfigDict(frozen=True)
    program: Id
    weights: tuple[Id, ...]
    """Tensors that are bound to the program's weight inputs, in their order."""


class Baked(BaseModel):
    """Content of the device cache of one bundle."""

    model_config = ConfigDict(frozen=True)
    folder: Path
    """Folder of the cache; not part of the record."""
    models: dict[Name, dict[Name, BakedStage]]
    """Model -> stage -> program and tensors."""
    segments_of: dict[Name, tuple[Name, ...]]
    """Model -> segments that its weights lie in."""
    tensors: dict[Id, TensorSpec]
    segments: dict[Name, SegmentSpec]
    files: dict[str, FileSpec]
    """Name -> size and hash, of every file of the cache except the record."""
    packings: dict[Name, PrivateCopy] = {}
    """INT8 model -> cost and gain of its private copy."""

    @property
    def blob(self) -> Path:
        """File with all baked weights."""
        return self.folder / BLOB

    def program(self, name: str) -> Path:
        """Return the file of a program."""
        return self.folder / f"{name}.onnx"

    def constant(self, model: str, stage: str) -> Path:
        """Return the graph of a stage with its weights inside, for models in mode ``constant``."""
        return self.folder / f"{model}.{stage}.onnx"

    def packed(self, model: str, stage: str) -> Path:
        """Return the INT8 graph of a stage with its weights inside."""
        return self.folder / f"{model}.{stage}.int8.onnx"


def load_cache(folder: Path, bundle: Bundle) -> Baked:
    """Open the cache of a bundle, and check everything but the content of its files.

    A cache may have come with a bundle from elsewhere, so only plain files in its folder are opened.

    Raises:
        BundleError: a file is missing, of the wrong size or kind, or does not belong to this bundle.
    """
    check_folder(folder)
    record = folder / CACHE_RECORD
    plain_size(record)
    try:
        baked = Baked.model_validate({**json.loads(record.read_bytes()), "folder": folder})
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise BundleError(f"{record}: is damaged") from error
    for path in _needed(baked, bundle):
        size, spec = plain_size(path), baked.files.get(path.name)
        if spec is None or size != spec.bytes:
            expected = "does not list it" if spec is None else f"says {spec.bytes}"
            raise BundleError(f"{path}: has {size} bytes, {CACHE_RECORD} {expected}")
    check_spans(str(record), baked.files[BLOB].bytes, baked.tensors, baked.segments)
    for name in bundle.manifest.models:
        weights = (weight for stage in baked.models[name].values() for weight in stage.weights)
        check_weights(f"{record}: models.{name}", weights, baked.segments_of[name], baked.segments)
    return baked


def check_hashes(baked: Baked, bundle: Bundle) -> None:
    """Read every file of a cache and compare its SHA-256 with the record.

    Raises:
        BundleError: a file's content is not what was written.
    """
    for path in _needed(baked, bundle):
        if sha256_of(path) != baked.files[path.name].sha256:
            raise BundleError(f"{path}: content is damaged")


def _needed(baked: Baked, bundle: Bundle) -> list[Path]:
    """Return the files that running the bundle opens.

    Raises:
        BundleError: the record does not have every model of the bundle.
    """
    paths = {baked.blob}
    int8 = {name: model.stages.keys() for name, model in bundle.manifest.models.items() if model.precision == "int8"}
    if {name: copy.copies.keys() for name, copy in baked.packings.items()} != int8:
        raise BundleError(f"{baked.folder / CACHE_RECORD}: INT8 models are not in it as the bundle has them")
    for name, model in bundle.manifest.models.items():
        stages = baked.models.get(name, {})
        if stages.keys() != model.stages.keys() or name not in baked.segments_of:
            raise BundleError(f"{baked.folder / CACHE_RECORD}: model {name!r} is not in it as the bundle has it")
        for stage, made in stages.items():
            paths.add(baked.program(made.program))
            if name in int8:
                paths.add(baked.packed(name, stage))
            elif model.mode == "constant":
                paths.add(baked.constant(name, stage))
            if not baked.tensors.keys() >= set(made.weights):
                raise BundleError(
                    f"{baked.folder / CACHE_RECORD}: model {name!r} refers to tensors that are not listed"
                )
        if not baked.segments.keys() >= set(baked.segments_of[name]):
            raise BundleError(f"{baked.folder / CACHE_RECORD}: model {name!r} refers to segments that are not listed")
    return sorted(paths)
