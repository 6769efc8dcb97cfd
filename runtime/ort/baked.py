"""Record of a baked bundle (optimised once for this CPU): programs, tensors and segments in its device cache."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from ...bundles.blob import Layout, footprint
from ...bundles.consistency import check_spans, check_weights
from ...bundles.forms import check_forms, compute_kernel, computed_layout, form_bytes, stored_of
from ...bundles.manifest import FileSpec, FormSpec, Id, Name, SegmentSpec, Size, TensorSpec
from ...bundles.reader import Bundle, sha256_of, view
from ...errors import BundleError
from ..device_cache import check_folder, plain_size

__all__ = [
    "BLOB",
    "CACHE_RECORD",
    "Baked",
    "BakedStage",
    "BakedStem",
    "PrivateCopy",
    "check_hashes",
    "hashes",
    "load_cache",
    "write_record",
]

BLOB = "weights.bin"
"""Name of the file in the device cache that holds all baked weights (optimised once for this CPU)."""
CACHE_RECORD = "cache.json"
"""Name of the file that holds the record of a device cache, which is a :class:`Baked` as JSON."""

_DIGEST = "digest"
"""Key of the entry of a device cache's record that holds the SHA-256 of all other entries."""
_WORTH = 0.95
"""Fraction of the time of a bound run below which an int8 run on a private copy counts as faster.

A bound run computes in float32 on shared weights. Measured times are 5 % uncertain.
"""


class PrivateCopy(BaseModel):
    """Cost and gain of running a model on a private copy of its weights."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)
    mode: Literal["packed", "openvino"] = "packed"
    """Form of the private copy. ``packed``: INT8 kernels in ONNX Runtime. ``openvino``: a program of OpenVINO."""
    copies: dict[Name, Size]
    """Stage -> bytes of the private copy of the stage's weights."""
    bound_ms: float = Field(ge=0)
    """Milliseconds of CPU time of a float32 run on shared weights, for one image on one thread."""
    packed_ms: float = Field(ge=0)
    """Milliseconds of CPU time of a run on the private copy, for one image on one thread."""

    @property
    def bytes(self) -> int:
        """Total bytes of the model's private copies of its weights."""
        return sum(self.copies.values())

    @property
    def gain_ms(self) -> float:
        """Milliseconds of CPU time that a run on the private copy saves, compared with a bound run."""
        return self.bound_ms - self.packed_ms

    @property
    def is_faster(self) -> bool:
        """Whether a run on the private copy is faster by more than the uncertainty of the measured times."""
        return self.packed_ms < _WORTH * self.bound_ms


class BakedStage(BaseModel):
    """Program and weights of one stage of a model that was baked (optimised once for this CPU)."""

    model_config = ConfigDict(frozen=True)
    program: Id
    weights: tuple[Id, ...]
    """Ids of the weights that are bound to the program's weight inputs, in the order of these inputs."""


class BakedStem(BaseModel):
    """Parts of one model's stage ``main`` that were baked (optimised once for this CPU), and run times on this CPU."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)
    stem: BakedStage
    rest: BakedStage
    main_ms: float = Field(ge=0)
    """Milliseconds of CPU time of ``main``, for one image on one thread."""
    stem_ms: float = Field(ge=0)
    """Milliseconds of CPU time of ``stem``, for one image on one thread."""
    rest_ms: float = Field(ge=0)
    """Milliseconds of CPU time of ``rest``, for one image on one thread."""


class Baked(BaseModel):
    """Record of what the device cache of one bundle holds."""

    model_config = ConfigDict(frozen=True)
    folder: Path
    """Folder of the device cache; not stored in the record's file."""
    models: dict[Name, dict[Name, BakedStage]]
    """Model -> stage -> baked program and weights of the stage."""
    segments_of: dict[Name, tuple[Name, ...]]
    """Model -> segments of the blob that hold the model's weights, or what they are computed from."""
    tensors: dict[Id, TensorSpec]
    segments: dict[Name, SegmentSpec]
    files: dict[str, FileSpec]
    """File name -> size and SHA-256, for every file of the device cache except the record."""
    packings: dict[Name, PrivateCopy] = {}
    """INT8 model -> size and run times of its private copy."""
    forms: dict[Id, FormSpec] = {}
    """Kernels that are computed from tensors, by the id that the kernel would have as a tensor."""
    stems: dict[Name, BakedStem] = {}
    """Model -> parts of its stage ``main``, for models that have a stem in the bundle and whose parts need no other
    tensors than ``main`` once they are baked."""

    @property
    def blob(self) -> Path:
        """Path of the file that holds all baked weights."""
        return self.folder / BLOB

    @cached_property
    def computed(self) -> Layout:
        """Places of the kernels that are computed from tensors, in memory of their own."""
        users: dict[str, set[str]] = defaultdict(set)
        for name, stages in self.models.items():
            for weight in (weight for stage in stages.values() for weight in stage.weights):
                users[weight].add(name)
        return computed_layout(self.forms, users)

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Segment -> bytes of memory that it takes, also for segments of computed kernels."""
        segments = {**self.segments, **self.computed.segments}
        return {name: footprint(spec.length) for name, spec in segments.items()}

    def needs(self, model: str) -> tuple[str, ...]:
        """Return the segments that must be in memory while a model runs; what is computed comes last."""
        own = (name for name, spec in self.computed.segments.items() if model in spec.models)
        return (*self.segments_of[model], *own)

    def bytes_of(self, weight: str) -> int:
        """Return the bytes that a weight takes in memory, whether it is a tensor or a computed kernel."""
        return form_bytes(self.forms[weight]) if weight in self.forms else self.tensors[weight].length

    def weight(self, blob: NDArray[np.uint8], weight: str) -> NDArray[Any]:
        """Return a weight as an array: a view of the blob's bytes, or a kernel that is computed from them."""
        if weight in self.forms:
            return compute_kernel(self.forms[weight], lambda tensor: view(blob, self.tensors[tensor]))
        return view(blob, self.tensors[weight])

    def program(self, name: str) -> Path:
        """Return the path of a program's ONNX file in the device cache."""
        return self.folder / f"{name}.onnx"

    def stage(self, model: str, stage: str) -> BakedStage:
        """Return the program and weights of a model's stage; ``stem`` and ``rest`` are the parts of a model with a
        stem."""
        stem = self.stems.get(model)
        if stem is not None and stage in ("stem", "rest"):
            return stem.stem if stage == "stem" else stem.rest
        return self.models[model][stage]

    def constant(self, model: str, stage: str) -> Path:
        """Return the device cache's path of a stage's graph with constant weights, for models in mode ``constant``."""
        return self.folder / f"{model}.{stage}.onnx"

    def packed(self, model: str, stage: str) -> Path:
        """Return the device cache's path of a stage's INT8 graph with weights inside, for models in mode ``packed``."""
        return self.folder / f"{model}.{stage}.int8.onnx"


def load_cache(folder: Path, bundle: Bundle) -> Baked:
    """Read the record of a bundle's device cache, and check all but the content of the cache's other files.

    A cache may have come with a bundle from elsewhere, so only plain files in its folder are opened.

    Raises:
        BundleError: a file is missing, of the wrong size or kind, or does not belong to this bundle.
    """
    check_folder(folder)
    record = folder / CACHE_RECORD
    plain_size(record)
    try:
        document = json.loads(record.read_bytes())
        if document.get(_DIGEST) != _digest(document):
            raise ValueError("the record is not as it was written")
        baked = Baked.model_validate({**document, "folder": folder})
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise BundleError(f"{record}: is damaged") from error
    for path in _needed(baked, bundle):
        size, spec = plain_size(path), baked.files.get(path.name)
        if spec is None or size != spec.bytes:
            expected = "does not list it" if spec is None else f"says {spec.bytes}"
            raise BundleError(f"{path}: has {size} bytes, {CACHE_RECORD} {expected}")
    check_spans(str(record), baked.files[BLOB].bytes, baked.tensors, baked.segments)
    check_forms(str(record), baked.forms, baked.tensors)
    for name in bundle.manifest.models:
        if name in baked.stems and not _fits(baked.stems[name], baked.models[name]["main"]):
            raise BundleError(f"{record}: models.{name}: its stem refers to tensors that 'main' does not use")
        weights = (weight for stage in baked.models[name].values() for weight in stage.weights)
        stored = stored_of(weights, baked.forms)
        check_weights(f"{record}: models.{name}", stored, baked.segments_of[name], baked.segments)
    return baked


def write_record(baked: Baked) -> None:
    """Write the record of a device cache into the cache's folder."""
    document = json.loads(baked.model_dump_json(exclude={"folder"}))
    document[_DIGEST] = _digest(document)
    (baked.folder / CACHE_RECORD).write_text(json.dumps(document, indent=1))


def hashes(baked: Baked, bundle: Bundle) -> dict[Path, str]:
    """Return file -> SHA-256 that the record of a device cache states, for the files that a run opens."""
    return {path: baked.files[path.name].sha256 for path in _needed(baked, bundle)}


def check_hashes(baked: Baked, bundle: Bundle) -> None:
    """Read every file of a device cache and compare its SHA-256 with the SHA-256 in the cache's record.

    Raises:
        BundleError: the content of a file differs from the record.
    """
    for path, digest in hashes(baked, bundle).items():
        if sha256_of(path) != digest:
            raise BundleError(f"{path}: content is damaged")


def _digest(document: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a record's document, without the entry that holds the SHA-256."""
    content = {key: value for key, value in document.items() if key != _DIGEST}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _needed(baked: Baked, bundle: Bundle) -> list[Path]:
    """Return the files of a device cache that are opened when the bundle is run.

    Raises:
        BundleError: the record does not have every model of the bundle.
    """
    paths = {baked.blob}
    int8 = {name: model.stages.keys() for name, model in bundle.manifest.models.items() if model.precision == "int8"}
    if {name: copy.copies.keys() for name, copy in baked.packings.items()} != int8:
        raise BundleError(f"{baked.folder / CACHE_RECORD}: its INT8 models are not those of the bundle")
    for name, model in bundle.manifest.models.items():
        stages = baked.models.get(name, {})
        if stages.keys() != model.stages.keys() or name not in baked.segments_of:
            raise BundleError(f"{baked.folder / CACHE_RECORD}: model {name!r} has other stages than in the bundle")
        for stage, made in stages.items():
            paths.add(baked.program(made.program))
            if name in int8:
                paths.add(baked.packed(name, stage))
            elif model.mode == "constant":
                paths.add(baked.constant(name, stage))
            if not baked.tensors.keys() >= set(stored_of(made.weights, baked.forms)):
                raise BundleError(
                    f"{baked.folder / CACHE_RECORD}: model {name!r} refers to tensors that are not listed"
                )
        if name in baked.stems:
            paths.update(baked.program(part.program) for part in (baked.stems[name].stem, baked.stems[name].rest))
        if not baked.segments.keys() >= set(baked.segments_of[name]):
            raise BundleError(f"{baked.folder / CACHE_RECORD}: model {name!r} refers to segments that are not listed")
    return sorted(paths)


def _fits(stem: BakedStem, main: BakedStage) -> bool:
    """Return whether the parts of a model's stage ``main`` use no other tensors than ``main``."""
    return {*stem.stem.weights, *stem.rest.weights} <= {*main.weights}
