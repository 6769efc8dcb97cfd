"""What a manifest must also be, beyond its schema: references that lead somewhere, and figures that make sense."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod

import numpy as np

from ..errors import BundleError
from .budget import parse_memory
from .manifest import Manifest, ModelSpec, SegmentSpec, TensorSpec

__all__ = ["check_manifest", "check_spans"]

_MOST_DIMENSIONS = 32


def check_manifest(where: str, content: Manifest) -> None:
    """Check a manifest whose files are there.

    Args:
        where: path of the manifest, named in errors.
        content: what was read from it.

    Raises:
        BundleError: the first thing that is wrong.
    """
    check_spans(where, content.files[content.blob].bytes, content.tensors, content.segments)
    for name, model in content.models.items():
        _check_model(f"{where}: models.{name}", content, model)
    for name, program in content.programs.items():
        if program.inputs < 0:
            raise BundleError(f"{where}: programs.{name}.inputs: {program.inputs} is not allowed: at least 0")
    for name, feed in content.feeds.items():
        if feed.fps is not None and feed.fps <= 0:
            raise BundleError(f"{where}: feeds.{name}.fps: {feed.fps} is not allowed: more than 0")
    for name, query in content.queries.items():
        if query.model not in content.models or query.feed not in content.feeds:
            raise BundleError(f"{where}: queries.{name}: model {query.model!r} or feed {query.feed!r} is not listed")
    try:
        parse_memory(content.device.memory)
    except ValueError as error:
        raise BundleError(f"{where}: device.memory: {content.device.memory!r} is not allowed: {error}") from error


def check_spans(where: str, size: int, tensors: Mapping[str, TensorSpec], segments: Mapping[str, SegmentSpec]) -> None:
    """Check that everything lies inside a blob of ``size`` bytes and that tensors are as long as their shapes say.

    Raises:
        BundleError: one that does not.
    """
    spans: dict[str, TensorSpec | SegmentSpec] = {**tensors, **segments}
    for name, spec in spans.items():
        if spec.offset + spec.length > size:
            raise BundleError(f"{where}: {name} lies at {spec.offset}+{spec.length}, outside the blob of {size} bytes")
    for name, tensor in tensors.items():
        # Python's integers: a product of 64 bits could wrap around to the right length.
        count = prod(tensor.shape)
        if np.dtype(tensor.dtype).itemsize * count != tensor.length or len(tensor.shape) > _MOST_DIMENSIONS:
            raise BundleError(
                f"{where}: tensors.{name}: {tensor.dtype}{list(tensor.shape)} is not {tensor.length} bytes"
            )


def _check_model(where: str, content: Manifest, model: ModelSpec) -> None:
    if "main" not in model.stages or not model.stages["main"].inputs:
        raise BundleError(f"{where}: stages: a stage 'main' with at least one input is expected")
    for stage in model.stages.values():
        unknown = _missing(stage.weights, content.tensors)
        if unknown or stage.file not in content.files or stage.program not in content.programs:
            raise BundleError(f"{where}: {stage.file} refers to what the manifest does not list")
    for segment in _missing(model.segments, content.segments):
        raise BundleError(f"{where}: segment {segment!r} is not listed")
    anchors = getattr(model.decode, "anchors", ())
    for tensor in _missing((anchors,) if isinstance(anchors, str) else anchors, content.tensors):
        raise BundleError(f"{where}: decode.anchors: tensor {tensor!r} is not listed")
    if min(model.input.size) < 1:
        raise BundleError(f"{where}: input.size: {list(model.input.size)} is not allowed: at least 1 x 1")
    if model.bytes < 0:
        raise BundleError(f"{where}: bytes: {model.bytes} is not allowed: at least 0")


def _missing(names: Iterable[str], known: Mapping[str, object]) -> list[str]:
    return [name for name in names if name not in known]
