"""Models that come as ONNX files: retrained as PyTorch modules, and written back into the same graph."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...bundles.manifest import InputSpec
from ...compiler.heads import Cut, as_tuple
from ...compiler.heads.stages import BATCH, StageModule, Whole
from ...compiler.lowering.onnx_source import read_onnx, run_file
from ...errors import ModelError, RetrainError, first_line
from ...workload.document.paths import locate
from ...workload.document.schema import Input, Query
from .onnx_convert import Converted, convert
from .onnx_weights import replace_weights

__all__ = ["cut_onnx", "onnx_bytes"]

_TOLERANCE = 1e-4
"""Largest difference between ONNX Runtime's outputs and PyTorch's, as part of the largest value of an output."""
_TOLERANCE_WRITTEN = 1e-3
"""The same once weights are written: one in a wrong place shows as more, rounding must not cost hours of training."""


def cut_onnx(query: Query, root: Path) -> Cut:
    """An ONNX model as a stage that can be trained, for any number of images of the workload's size.

    Its convolutions, linear layers and BatchNorms are ordinary PyTorch layers; all other constants stay as they are. In
    eval mode it computes what ONNX Runtime does, which is tried here.

    Args:
        query: from the workload.
        root: folder that relative paths start from.

    Raises:
        ModelError: not a usable ONNX file.
        RetrainError: one that cannot be retrained, naming query, file and operator.
    """
    assert query.model.onnx is not None
    path = locate(query.model.onnx, root, f"query {query.name}: onnx")
    try:
        source = read_onnx(path, query.task, query.model.input)
        images = _noise(source.input)
    except ModelError as error:
        raise ModelError(f"query {query.name}: {error}") from error
    names = tuple(port.name or "" for port in source.model.graph.outputs)
    try:
        converted = convert(source)
        _compare(converted, path, images, _TOLERANCE)
    except ModelError as error:
        raise RetrainError(
            f"query {query.name}: {path}: cannot be retrained: {error}; its model may be given as a PyTorch factory"
        ) from error
    stage = StageModule(Whole(converted.module).eval(), {"image": images}, names, BATCH)
    return Cut({"main": stage}, source.decode, source.input)


def onnx_bytes(source: Path, state: Mapping[str, Tensor], wanted: Input | None = None) -> bytes:
    """An ONNX file with other weights: the same graph with the same names, each tensor bit for bit.

    The result is run on images and compared with the module. Weights that the file holds once and the state dict
    twice, with different values by now, become initializers of their own.

    Args:
        source: the file that :func:`cut_onnx` read; weights in files beside it are taken in.
        state: of the module that :func:`cut_onnx` made.
        wanted: the query's ``model.input``, needed where the file leaves the image size open.

    Raises:
        ModelError: the state is not of this model, or the file with it does not compute what the module does.
    """
    found = read_onnx(source, "embedding", wanted or Input())
    images = _noise(found.input)
    try:
        converted = convert(found)
        _load(converted.module, state)
        file = onnx.load(source)
        replace_weights(file, converted.places, state)
        content: bytes = file.SerializeToString()
        with tempfile.TemporaryDirectory() as folder:
            written = Path(folder) / source.name
            written.write_bytes(content)
            _compare(converted, written, images, _TOLERANCE_WRITTEN)
    except ModelError as error:
        raise ModelError(f"{source}: cannot be written with other weights: {error}") from error
    return content


def _noise(spec: InputSpec) -> Tensor:
    """Two images of random pixels as the model wants them: with other ranges some outputs are all rounding."""
    channels = 1 if spec.color == "gray" else 3
    pixels = torch.randint(0, 256, (2, channels, *spec.size), generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values[:channels])[:, None, None] for values in (spec.mean, spec.std))
    return (pixels * spec.scale - mean) / std


def _compare(converted: Converted, path: Path, images: Tensor, tolerance: float) -> None:
    """Run the module on a batch and the file on each image alone: it may have been made for just one."""
    alone = [run_file(path, image.numpy()) for image in images[:, None]]
    try:
        with torch.inference_mode():
            outputs = as_tuple(converted.module.eval()(images))
    except Exception as error:
        raise ModelError(f"does not run as PyTorch on {len(images)} images: {first_line(error)}") from error
    for name, output in zip(alone[0], outputs, strict=True):
        expected = np.concatenate([values[name] for values in alone])
        found = output.numpy()
        worst = np.inf if found.shape != expected.shape else _difference(found, expected)
        if not worst <= tolerance:
            notes = f" (onnx2torch: {converted.notes[0]})" if converted.notes else ""
            raise ModelError(
                f"as PyTorch, output {name} {list(found.shape)} differs from ONNX Runtime's {list(expected.shape)}"
                f" by {worst:.1e} of its largest value, more than {tolerance:g}{notes}"
            )


def _difference(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    largest = float(np.abs(expected).max(initial=0.0))
    return float(np.abs(found - expected).max(initial=0.0)) / max(largest, float(np.finfo(np.float32).tiny))


def _load(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    own = module.state_dict()
    for name in sorted(own.keys() | state.keys()):
        if name.endswith("num_batches_tracked"):
            continue  # a counter of training steps; the file has no place for it and needs none
        if name not in own:
            raise ModelError(f"{name} has no place in the file")
        if name not in state or state[name].shape != own[name].shape:
            found = list(state[name].shape) if name in state else "nothing"
            raise ModelError(f"{name}: the file's is {list(own[name].shape)}, the new one {found}")
    module.load_state_dict(dict(state), strict=False)
