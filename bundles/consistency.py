"""Checks of a manifest beyond its schema: every reference names a listed item, and numbers are in range."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from math import prod

import numpy as np

from ..errors import BundleError
from .blob import PAGE, TENSOR_ALIGNMENT
from .budget import parse_memory
from .forms import check_forms, stored_of
from .manifest import MOST_PIXELS, Manifest, ModelSpec, SegmentSpec, TensorSpec

__all__ = ["check_manifest", "check_spans", "check_weights"]

_MOST_DIMENSIONS = 32
"""Maximum number of dimensions of a tensor, which is the limit of NumPy 1."""


def check_manifest(where: str, content: Manifest) -> None:
    """Check the references and numbers in a manifest, whose listed files must exist.

    Args:
        where: path of the manifest, for error messages.
        content: content of the manifest.

    Raises:
        BundleError: a field is wrong; the message names the first wrong field.
    """
    check_spans(where, content.files[content.blob].bytes, content.tensors, content.segments)
    check_forms(where, content.forms, content.tensors)
    for name, model in content.models.items():
        _check_model(f"{where}: models.{name}", content, model)
    _check_stems(where, content)
    _check_originals(where, content)
    for name, program in content.programs.items():
        if program.inputs < 0:
            raise BundleError(f"{where}: programs.{name}.inputs: {program.inputs} is not allowed: at least 0")
    for name, feed in content.feeds.items():
        if feed.fps is not None and feed.fps <= 0:
            raise BundleError(f"{where}: feeds.{name}.fps: {feed.fps} is not allowed: more than 0")
    for name, query in content.queries.items():
        if query.model not in content.models or query.feed not in content.feeds:
            raise BundleError(f"{where}: queries.{name}: model {query.model!r} or feed {query.feed!r} is not listed")
        fps = content.feeds[query.feed].fps
        if fps is not None and query.min_fps > fps:
            more = f"{query.min_fps:g} is not allowed: at most the {fps:g} frames per second of feed {query.feed}"
            raise BundleError(f"{where}: queries.{name}.min_fps: {more}")
    try:
        parse_memory(content.device.memory)
    except ValueError as error:
        raise BundleError(f"{where}: device.memory: {content.device.memory!r} is not allowed: {error}") from error


def check_spans(where: str, size: int, tensors: Mapping[str, TensorSpec], segments: Mapping[str, SegmentSpec]) -> None:
    """Check that tensors lie inside their segments, and that segments lie inside the blob and do not overlap.

    Args:
        where: path of the file that lists the offsets, for error messages.
        size: size of the blob in bytes.
        tensors: tensor id -> offset, length, dtype and shape.
        segments: segment name -> offset, length and tensors.

    Raises:
        BundleError: a tensor lies outside its segment, a tensor or segment lies outside the blob or is not aligned,
            segments overlap, or a tensor's length does not match its shape. The message names the first error.
    """
    for name, tensor in tensors.items():
        _check_place(f"{where}: tensors.{name}", tensor, TENSOR_ALIGNMENT, size)
        # Computed in Python's integers: a 64-bit product could overflow to the right length.
        count = prod(tensor.shape)
        if np.dtype(tensor.dtype).itemsize * count != tensor.length or len(tensor.shape) > _MOST_DIMENSIONS:
            shape = f"{tensor.dtype}{list(tensor.shape)}"
            raise BundleError(f"{where}: tensors.{name}: {shape} is not {tensor.length} bytes")
    for name, segment in segments.items():
        _check_place(f"{where}: segments.{name}", segment, PAGE, size)
        for member in segment.tensors:
            if member not in tensors:
                raise BundleError(f"{where}: segments.{name}: tensor {member!r} is not listed")
            if not _contains(segment, tensors[member]):
                raise BundleError(
                    f"{where}: tensors.{member} lies at {_span(tensors[member])},"
                    f" outside its segment {name} at {_span(segment)}"
                )
    in_order = sorted(segments, key=lambda name: (segments[name].offset, segments[name].length))
    for before, after in pairwise(in_order):
        if segments[after].offset < segments[before].offset + segments[before].length:
            raise BundleError(
                f"{where}: segments {before} at {_span(segments[before])}"
                f" and {after} at {_span(segments[after])} overlap"
            )


def check_weights(
    where: str, weights: Iterable[str], names: Sequence[str], segments: Mapping[str, SegmentSpec]
) -> None:
    """Check that every weight of a model is a tensor of one of the model's segments.

    Args:
        where: name of the file and of the model, for error messages.
        weights: tensor ids of the model's weights.
        names: names of the model's segments.
        segments: segment name -> offset, length and tensors.

    Raises:
        BundleError: a weight would not be resident when the model runs; the message names the first one.
    """
    resident = {tensor for name in names for tensor in segments[name].tensors}
    for weight in weights:
        if weight not in resident:
            has = ", ".join(names) or "none"
            raise BundleError(f"{where}: weight {weight!r} lies in none of the model's segments, which are {has}")


def _check_place(where: str, spec: TensorSpec | SegmentSpec, alignment: int, size: int) -> None:
    if spec.offset + spec.length > size:
        raise BundleError(f"{where} lies at {_span(spec)}, outside the blob of {size} bytes")
    if spec.offset % alignment:
        raise BundleError(f"{where}: offset {spec.offset} is not allowed: a multiple of {alignment} is expected")


def _contains(segment: SegmentSpec, tensor: TensorSpec) -> bool:
    return segment.offset <= tensor.offset and tensor.offset + tensor.length <= segment.offset + segment.length


def _span(spec: TensorSpec | SegmentSpec) -> str:
    return f"{spec.offset}+{spec.length}"


def _check_model(where: str, content: Manifest, model: ModelSpec) -> None:
    if "main" not in model.stages or not model.stages["main"].inputs:
        raise BundleError(f"{where}: stages: a stage 'main' with at least one input is expected")
    for stage in model.stages.values():
        unknown = _missing(stored_of(stage.weights, content.forms), content.tensors)
        if unknown or stage.file not in content.files or stage.program not in content.programs:
            raise BundleError(f"{where}: {stage.file} refers to a tensor, file or program that is not listed")
    for segment in _missing(model.segments, content.segments):
        raise BundleError(f"{where}: segment {segment!r} is not listed")
    check_weights(where, stored_of(model.weights, content.forms), model.segments, content.segments)
    for tensor in _missing(model.anchors, content.tensors):
        raise BundleError(f"{where}: decode.anchors: tensor {tensor!r} is not listed")
    if min(model.input.size) < 1:
        raise BundleError(f"{where}: input.size: {list(model.input.size)} is not allowed: at least 1 x 1")
    if model.input.size[0] * model.input.size[1] > MOST_PIXELS:
        raise BundleError(
            f"{where}: input.size: {list(model.input.size)} is not allowed: at most {MOST_PIXELS:,} pixels (8K)"
        )
    if model.bytes < 0:
        raise BundleError(f"{where}: bytes: {model.bytes} is not allowed: at least 0")


def _check_originals(where: str, content: Manifest) -> None:
    """Check that the files and tensors of models that do not run are there for when they do.

    Raises:
        BundleError: a model, file or tensor is not listed, or a model that does not run would be loaded.
    """
    if content.originals is None:
        return
    forms = {**content.originals.forms, **content.forms}
    check_forms(f"{where}: originals", content.originals.forms, content.tensors)
    for name, other in content.originals.models.items():
        here, model = f"{where}: originals.models.{name}", other.model
        if name not in content.models:
            raise BundleError(f"{here}: there is no such model")
        if "main" not in model.stages or not model.stages["main"].inputs or model.segments:
            raise BundleError(f"{here}: a stage 'main' with at least one input and no segments are expected")
        stem = () if model.stem is None else (model.stem.stem, model.stem.rest)
        for stage in (*model.stages.values(), *stem):
            unknown = _missing(stored_of((*stage.weights, *model.anchors), forms), content.tensors)
            if unknown or stage.file not in content.files:
                raise BundleError(f"{here}: {stage.file} refers to a tensor or file that is not listed")


def _check_stems(where: str, content: Manifest) -> None:
    """Check the stems of all models, whose other fields were checked before.

    Raises:
        BundleError: a stem does not fit its model, or two models have different stems with the same id.
    """
    first: dict[str, str] = {}
    for name, model in content.models.items():
        if model.stem is None:
            continue
        here, stem, rest, main = f"{where}: models.{name}.stem", model.stem.stem, model.stem.rest, model.stages["main"]
        if model.mode != "bound" or model.precision != "fp32":
            raise BundleError(f"{here}: a model of mode {model.mode} and precision {model.precision} has none")
        if taken := model.stages.keys() & {"stem", "rest"}:
            raise BundleError(f"{here}: the model has a stage {min(taken)!r} of its own")
        for part in (stem, rest):
            if part.file not in content.files or _missing(part.weights, dict.fromkeys(main.weights)):
                raise BundleError(f"{here}: {part.file} is not listed, or refers to a tensor that 'main' does not use")
        known = {port.name: port for port in (*stem.inputs, *stem.outputs)}
        if len(stem.inputs) != 1 or len(main.inputs) != 1 or _missing([port.name for port in rest.inputs], known):
            raise BundleError(f"{here}: 'rest' takes other values than the frame and the outputs of 'stem'")
        if rest.outputs != main.outputs:
            raise BundleError(f"{here}: 'rest' has other outputs than 'main'")
        other = content.models[first.setdefault(model.stem.id, name)]
        assert other.stem is not None  # only models with a stem are noted
        parts = [(each.program, each.weights, each.inputs, each.outputs) for each in (stem, other.stem.stem)]
        if parts[0] != parts[1] or model.input != other.input:
            raise BundleError(f"{here}: is not the stem of models.{first[model.stem.id]}, which has the same id")


def _missing(names: Iterable[str], known: Mapping[str, object]) -> list[str]:
    return [name for name in names if name not in known]
