"""Device cache of OpenVINO programs: each stage of each model, compiled for this CPU with its weights inside.

The backends ``openvino`` and ``openvino-fast`` use a cache of all models. ``auto-cpu`` uses a cache of the models that
are faster in OpenVINO than bound in ONNX Runtime, with the times of both. In the latter, a model is in bf16 if that was
accepted (:mod:`.accepted`) and is faster.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import onnxruntime as ort
from pydantic import BaseModel, ConfigDict

from ...bundles.manifest import Name, Size
from ...bundles.reader import Bundle
from ...bundles.verified import verify_once
from ...errors import BackendError, BundleError
from ..device_cache import check_folder, find_or_make, places, plain_size
from ..ort.bake import cpu_flags
from ..ort.baked import Baked, PrivateCopy
from .accepted import QueryAgreement, read_acceptance
from .compiled_form import best_form
from .openvino_cpu import OvPrecision, computes_in_bf16, openvino_version

__all__ = ["CompiledModels", "CompiledStage", "compiled_models", "has_compiled_models"]

_log = logging.getLogger(__name__)

_LAYOUT = "1"
"""Version number of how programs are compiled and stored. Change it when a bundle would be compiled differently."""
_RECORD = "compiled.json"
"""Name of the file that holds the record of a device cache, which is a :class:`CompiledModels` as JSON."""


class CompiledStage(BaseModel):
    """File of a compiled program, and the memory that the program's weights take."""

    model_config = ConfigDict(frozen=True)
    bytes: Size
    """Size of the file in bytes."""
    sha256: str
    """SHA-256 of the file's content, in hex."""
    weights: Size
    """Bytes of memory of the weights when the program is loaded."""


class CompiledModels(BaseModel):
    """Record of the programs that OpenVINO compiled from one bundle."""

    model_config = ConfigDict(frozen=True)
    folder: Path
    """Folder of the device cache; not stored in the record's file."""
    bundle: str
    """Id of the bundle that the programs were compiled from."""
    models: dict[Name, dict[Name, CompiledStage]]
    """Model -> stage -> file with the compiled program."""
    left_out: dict[Name, str]
    """Model -> reason why there is no compiled program. ONNX Runtime runs such a model."""
    copies: dict[Name, PrivateCopy] = {}
    """Model -> size of the compiled programs, and run times of these and of the model bound in ONNX Runtime.

    Empty if nothing was measured.
    """
    bf16: dict[Name, dict[Name, QueryAgreement]] = {}
    """Model -> query -> agreement with float32, for the models that this record has in bf16 because they keep their
    accuracy."""

    def path(self, model: str, stage: str) -> Path:
        """Return the file that holds the compiled program of a stage."""
        return _file(self.folder, model, stage)


def compiled_models(
    bundle: Bundle,
    precision: OvPrecision,
    progress: Callable[[str], None] = lambda model: None,
    beside: Baked | None = None,
) -> CompiledModels:
    """Return the device cache of a bundle for OpenVINO on this CPU; compile the bundle's models if there is none.

    Args:
        bundle: an open bundle. Its hashes are verified before anything is compiled from it.
        precision: precision of layers that are not int8.
        progress: function called with the name of each model before the model is compiled.
        beside: device cache of ONNX Runtime. If it is given, models that are no faster in OpenVINO are left out.

    Raises:
        BundleError: a file of the bundle is damaged.
        BackendError: no folder can be written.
        MissingExtraError: OpenVINO is not installed.
    """
    accepted = {} if beside is None else _accepted(bundle)
    return find_or_make(
        _folders(bundle, precision, None if beside is None else accepted),
        bundle,
        lambda folder: _verified(folder, bundle),
        lambda folder: _fill(folder, bundle, precision, progress, beside, accepted),
    )


def has_compiled_models(bundle: Bundle, precision: OvPrecision, *, measured: bool = False) -> bool:
    """Return whether the bundle has a device cache for OpenVINO, whose files are there and of the right size.

    Args:
        bundle: an open bundle.
        precision: precision of layers that are not int8.
        measured: whether to look for the cache that holds only the models which are faster in OpenVINO.
    """
    for folder in _folders(bundle, precision, _accepted(bundle) if measured else None):
        with suppress(BundleError):
            _read(folder, bundle)
            return True
    return False


_Accepted = Mapping[str, Mapping[str, QueryAgreement]]
"""Model -> query -> agreement with float32, for models that may run in bf16."""


def _accepted(bundle: Bundle) -> _Accepted:
    """Return the models of a bundle that may run in bf16, with the agreement of their queries."""
    known = read_acceptance(bundle)
    return {} if known is None else known.models(bundle)


def _folders(bundle: Bundle, precision: OvPrecision, accepted: _Accepted | None) -> tuple[Path, Path]:
    """Return the folders that may hold a bundle's compiled programs, the preferred folder first.

    Args:
        bundle: an open bundle.
        precision: precision of layers that are not int8.
        accepted: models that may run in bf16, in the cache of ``auto-cpu``; None for the cache of another backend.
    """
    parts = [bundle.id, openvino_version(), platform.machine(), cpu_flags(), precision, _LAYOUT]
    if accepted is not None:
        parts.append(ort.__version__)
    if accepted:
        # A cache that was made before bf16 was accepted, or with other models in bf16, must not be used.
        parts.append(" ".join(sorted(accepted)))
    key = hashlib.sha256(chr(10).join(parts).encode()).hexdigest()[:16]
    return places(bundle, f"{'openvino' if accepted is None else 'auto-cpu'}-{key}")


def _file(folder: Path, model: str, stage: str) -> Path:
    return folder / f"{model}.{stage}.ov"


def _fill(
    folder: Path,
    bundle: Bundle,
    precision: OvPrecision,
    progress: Callable[[str], None],
    beside: Baked | None,
    accepted: _Accepted,
) -> None:
    """Compile models into a folder, and write their record. Why a model is left out is recorded."""
    models: dict[str, dict[str, CompiledStage]] = {}
    left_out: dict[str, str] = {}
    copies: dict[str, PrivateCopy] = {}
    bf16: dict[str, dict[str, QueryAgreement]] = {}
    if beside is not None and read_acceptance(bundle) is None and computes_in_bf16():
        # Said once, because the cache is made once.
        _log.warning(
            "auto-cpu does not use bf16: its accuracy was not measured; gemel eval %s --accept bf16 does so",
            bundle.path,
        )
    for name in bundle.manifest.models:
        progress(name)
        allowed: tuple[OvPrecision, ...] = (precision, "default") if name in accepted else (precision,)
        try:
            chosen = best_form(bundle, name, allowed, beside)
        except BackendError as error:
            left_out[name] = str(error)
            continue
        copy = chosen.copy
        if copy is not None and not copy.is_faster:
            left_out[name] = f"{copy.packed_ms:.3g} ms in OpenVINO, {copy.bound_ms:.3g} ms bound in ONNX Runtime"
            continue
        if copy is not None:
            copies[name] = copy
        if chosen.precision != precision:
            bf16[name] = dict(accepted[name])
        models[name] = {
            stage: _write(_file(folder, name, stage), data, chosen.memory[stage])
            for stage, data in chosen.exported.items()
        }
    record = CompiledModels(folder=folder, bundle=bundle.id, models=models, left_out=left_out, copies=copies, bf16=bf16)
    (folder / _RECORD).write_text(record.model_dump_json(exclude={"folder"}, indent=1))


def _write(path: Path, data: bytes, memory: int) -> CompiledStage:
    """Write a compiled program into a file, and return the file's entry for the record."""
    path.write_bytes(data)
    return CompiledStage(bytes=len(data), sha256=hashlib.sha256(data).hexdigest(), weights=memory)


def _verified(folder: Path, bundle: Bundle) -> CompiledModels:
    """Return the record of a device cache whose files are whole: a compiled program is code that this machine runs.

    Raises:
        BundleError: a file is missing or damaged.
    """
    record = _read(folder, bundle)
    verify_once(
        {record.path(name, stage): file.sha256 for name, made in record.models.items() for stage, file in made.items()},
        folder,
    )
    return record


def _read(folder: Path, bundle: Bundle) -> CompiledModels:
    """Read the record of a device cache, and check all but the content of the cache's other files.

    Raises:
        BundleError: a file is missing, of the wrong size or kind, or does not belong to this bundle.
    """
    check_folder(folder)
    path = folder / _RECORD
    plain_size(path)
    try:
        record = CompiledModels.model_validate({**json.loads(path.read_bytes()), "folder": folder})
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise BundleError(f"{path}: is damaged") from error
    expected = {
        name: set(model.stages) for name, model in bundle.manifest.models.items() if name not in record.left_out
    }
    if record.bundle != bundle.id or {name: set(made) for name, made in record.models.items()} != expected:
        raise BundleError(f"{path}: these are not the programs of this bundle")
    for name, made in record.models.items():
        for stage, file in made.items():
            size = plain_size(record.path(name, stage))
            if size != file.bytes:
                raise BundleError(f"{record.path(name, stage)}: has {size} bytes, {_RECORD} says {file.bytes}")
    return record
