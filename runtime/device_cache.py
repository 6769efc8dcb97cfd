"""The device cache on disk: what a baked bundle is made of, whether it is whole, and how it is put in place."""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from platformdirs import user_cache_path
from pydantic import BaseModel, ConfigDict, Field

from ..bundles.consistency import check_spans
from ..bundles.manifest import FileSpec, Id, Name, SegmentSpec, Size, TensorSpec
from ..bundles.reader import CACHE, Bundle, sha256_of, verify
from ..errors import BackendError, BundleError

__all__ = [
    "BLOB",
    "CACHE_RECORD",
    "Baked",
    "BakedStage",
    "PrivateCopy",
    "check_folder",
    "check_hashes",
    "find_or_make",
    "folder_for",
    "load_cache",
    "places",
    "plain_size",
    "write_whole",
]

_T = TypeVar("_T")

BLOB = "weights.bin"
CACHE_RECORD = "cache.json"


_WORTH = 0.95
"""Of a bound run's time, what a packed one may take for the copy to be worth its memory: times are that uncertain."""


class PrivateCopy(BaseModel):
    """What packing a model costs, and what it brings."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)
    copies: dict[Name, Size]
    """By stage, the bytes of weights that its session holds."""
    bound_ms: float = Field(ge=0)
    """CPU time of a run, one image on one thread."""
    packed_ms: float = Field(ge=0)

    @property
    def bytes(self) -> int:
        return sum(self.copies.values())

    @property
    def gain_ms(self) -> float:
        return self.bound_ms - self.packed_ms

    @property
    def is_faster(self) -> bool:
        return self.packed_ms < _WORTH * self.bound_ms


class BakedStage(BaseModel):
    model_config = ConfigDict(frozen=True)
    program: Id
    weights: tuple[Id, ...]
    """Tensors in the program's order."""


class Baked(BaseModel):
    """What the device cache holds; ``folder`` is where."""

    model_config = ConfigDict(frozen=True)
    folder: Path
    models: dict[Name, dict[Name, BakedStage]]
    segments_of: dict[Name, tuple[Name, ...]]
    tensors: dict[Id, TensorSpec]
    segments: dict[Name, SegmentSpec]
    files: dict[str, FileSpec]
    """Every file of the cache but the record."""
    packings: dict[Name, PrivateCopy] = {}
    """Of INT8 models."""

    @property
    def blob(self) -> Path:
        return self.folder / BLOB

    def program(self, name: str) -> Path:
        return self.folder / f"{name}.onnx"

    def constant(self, model: str, stage: str) -> Path:
        """A graph with its weights, for models in mode ``constant``."""
        return self.folder / f"{model}.{stage}.onnx"

    def packed(self, model: str, stage: str) -> Path:
        """An INT8 graph with its weights."""
        return self.folder / f"{model}.{stage}.int8.onnx"


def load_cache(folder: Path, bundle: Bundle) -> Baked:
    """Open the cache of a bundle and check all but the content of its files.

    A cache may have come with a bundle from elsewhere: nothing is opened that is not a plain file in its folder.

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
    return baked


def check_folder(folder: Path) -> None:
    """
    Raises:
        BundleError: it or the one around it is missing or a link, which may lead elsewhere.
    """
    for path in (folder.parent, folder):
        if not stat.S_ISDIR(_status(path).st_mode):
            raise BundleError(f"{path}: is not a folder")


def check_hashes(baked: Baked, bundle: Bundle) -> None:
    """Read every file of a cache and compare its SHA-256.

    Raises:
        BundleError: a file's content is not what was written.
    """
    for path in _needed(baked, bundle):
        if sha256_of(path) != baked.files[path.name].sha256:
            raise BundleError(f"{path}: content is damaged")


def places(bundle: Bundle, name: str) -> tuple[Path, Path]:
    """Where what is made of a bundle may lie, the preferred place first: beside it, or in the user's cache folder."""
    return bundle.path / CACHE / name, user_cache_path("gemel") / name


def find_or_make(
    folders: Sequence[Path], bundle: Bundle, read: Callable[[Path], _T], fill: Callable[[Path], None]
) -> _T:
    """What lies in one of several folders; made in the first one that can be written where it is in none of them.

    Args:
        folders: the preferred one first.
        bundle: what it is made of; its hashes are verified before that.
        read: opens a folder; BundleError where it is missing or damaged.
        fill: writes a new one.

    Raises:
        BundleError: a file of the bundle is damaged.
        BackendError: it cannot be made, or no folder can be written.
    """

    def whole(folder: Path) -> _T | None:
        try:
            return read(folder)
        except BundleError:
            return None

    for folder in folders:
        if (found := whole(folder)) is not None:
            return found
    for _ in verify(bundle):
        pass
    reasons = []
    for folder in folders:
        if folder.parent.is_symlink():
            reasons.append(f"{folder.parent}: is a link")
            continue
        try:
            replace(folder, fill, lambda place: whole(place) is not None)
            return read(folder)
        except OSError as error:
            reasons.append(f"{error.filename or folder}: {error.strerror or error}")
        except BundleError as error:
            reasons.append(str(error))
    raise BackendError(f"no device cache could be written: {'; '.join(reasons)}")


def folder_for(bundle: Bundle, name: str) -> Path:
    """A folder for what is small and made again where it is missing; it may not be there, where none can be written.

    Args:
        bundle: in whose folder it lies, if that can be written.
        name: of a backend.
    """
    folders = (bundle.path / CACHE / name, user_cache_path("gemel") / f"{name}-{bundle.id[:16]}")
    for folder in folders:
        with suppress(OSError):
            # A link may lead elsewhere.
            if folder.parent.is_symlink():
                continue
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK):
                return folder
    return folders[0]


def write_whole(path: Path, data: bytes) -> None:
    """Write a file in an existing folder: it is whole or as it was before.

    Raises:
        OSError: it cannot be written.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}-") as folder:
        made = Path(folder) / path.name
        made.write_bytes(data)
        made.replace(path)


def replace(folder: Path, fill: Callable[[Path], None], whole: Callable[[Path], bool]) -> None:
    """Fill a temporary folder and rename it: a cache is whole or it is not there.

    Another process may have put one in place meanwhile, and use it: if it is whole, it stays.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".baking-"))
    try:
        made = work / "made"
        made.mkdir()
        fill(made)
        if whole(folder):
            return
        if os.path.lexists(folder):
            folder.rename(work / "old")
        made.rename(folder)
    except OSError:
        if not whole(folder):
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _needed(baked: Baked, bundle: Bundle) -> list[Path]:
    """The files that running the bundle opens."""
    paths = {baked.blob}
    int8 = {name: model.stages.keys() for name, model in bundle.manifest.models.items() if model.precision == "int8"}
    if {name: packing.copies.keys() for name, packing in baked.packings.items()} != int8:
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


def _status(path: Path) -> os.stat_result:
    try:
        return path.lstat()
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}") from error


def plain_size(path: Path) -> int:
    """Opening a link may lead elsewhere, opening a pipe waits for ever."""
    status = _status(path)
    if not stat.S_ISREG(status.st_mode):
        raise BundleError(f"{path}: is not a plain file")
    return status.st_size
