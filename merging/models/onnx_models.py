"""Models from ONNX files: converted to PyTorch modules for retraining, and written back into the same ONNX graph."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...bundles.manifest import InputSpec
from ...compiler.heads import Cut, as_tuple
from ...compiler.heads.stages import BATCH, StageModule, Whole
from ...compiler.lowering.lower import words_of
from ...compiler.lowering.onnx_source import read_onnx, run_file
from ...errors import ModelError, RetrainError, first_line
from ...workload.document.paths import locate
from ...workload.document.schema import Input, Query
from .onnx_convert import Converted, convert
from .onnx_weights import replace_weights

__all__ = ["cut_onnx", "onnx_bytes"]

_TOLERANCE = 1e-4
"""Largest allowed difference between PyTorch's and ONNX Runtime's outputs, divided by the largest absolute output."""
_TOLERANCE_WRITTEN = 1e-3
"""Largest allowed difference, as for ``_TOLERANCE``, between outputs after new weights were written to an ONNX file.

A weight that was written to a wrong node changes the outputs by more. A tighter bound could let rounding discard hours
of training."""


def cut_onnx(query: Query, root: Path) -> Cut:
    """Convert a query's ONNX model to a stage that can be trained, for batches of any number of images.

    Convolutions, linear layers and BatchNorms become ordinary PyTorch layers; all other constants are not trained. In
    eval mode the stage computes what ONNX Runtime computes; the function checks this on random images.

    Args:
        query: a query whose model is an ONNX file.
        root: folder that relative paths start from.

    Raises:
        ModelError: the file is not a usable ONNX model.
        RetrainError: the model cannot be retrained; the message names query, file and reason.
    """
    assert query.model.onnx is not None
    path = locate(query.model.onnx, root, f"query {query.name}: onnx")
    try:
        source = read_onnx(path, query.task, query.model.input, words_of(query))
        images = _noise(source.input)
    except ModelError as error:
        raise ModelError(f"query {query.name}: {error}") from error
    names = tuple(port.name or "" for port in source.model.graph.outputs)
    try:
        converted = convert(source)
        _compare(converted, path, images, names, _TOLERANCE)
    except ModelError as error:
        raise RetrainError(
            f"query {query.name}: {path}: cannot be retrained: {error}; its model may be given as a PyTorch factory"
        ) from error
    stage = StageModule(Whole(converted.module).eval(), {"image": images}, names, BATCH)
    return Cut({"main": stage}, source.decode, source.input)


def onnx_bytes(source: Path, state: Mapping[str, Tensor], wanted: Input | None = None) -> bytes:
    """Return the content of an ONNX file with new weights; graph and names stay, and weights are exact to the bit.

    The new file is run on random images and its outputs are compared with the PyTorch module's. A tensor that the file
    holds once, but the state dict several times and now with different values, is written as several initializers.

    Args:
        source: the file that :func:`cut_onnx` read; weights in external data files become part of the result.
        state: new values for the state dict of the module that :func:`cut_onnx` made.
        wanted: the query's ``model.input``; needed if the file leaves the image size open.

    Raises:
        ModelError: the state dict does not fit the model, or the new file's outputs differ from the PyTorch module's.
    """
    found = read_onnx(source, "raw", wanted or Input())
    images = _noise(found.input)
    names = tuple(port.name or "" for port in found.model.graph.outputs)
    try:
        converted = convert(found)
        _load(converted.module, state)
        file = onnx.load(source)
        replace_weights(file, converted.places, state)
        content: bytes = file.SerializeToString()
        with tempfile.TemporaryDirectory() as folder:
            written = Path(folder) / source.name
            written.write_bytes(content)
            _compare(converted, written, images, names, _TOLERANCE_WRITTEN)
    except ModelError as error:
        raise ModelError(f"{source}: cannot be written with other weights: {error}") from error
    return content


def _noise(spec: InputSpec) -> Tensor:
    """Return two images of random pixels, ``[2, C, height, width]``, normalised as a model's input expects.

    For input values of another range, some models' outputs are little more than rounding errors.
    """
    channels = 1 if spec.color == "gray" else 3
    pixels = torch.randint(0, 256, (2, channels, *spec.size), generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values[:channels])[:, None, None] for values in (spec.mean, spec.std))
    return (pixels * spec.scale - mean) / std


def _compare(converted: Converted, path: Path, images: Tensor, names: Sequence[str], tolerance: float) -> None:
    """Compare the module's outputs on a batch with those of the ONNX file, run on one image at a time.

    The file is run on one image at a time, because it may have been exported for a batch of one.

    Args:
        converted: the module.
        path: the ONNX file.
        images: ``[N, C, height, width]``.
        names: the module's outputs as they are called in the file, in the module's order.
        tolerance: largest allowed difference, relative to an output's largest value.

    Raises:
        ModelError: the module does not run on the batch, or an output differs by more than ``tolerance``.
    """
    alone = [run_file(path, image.numpy(), names) for image in images[:, None]]
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
    """Return the largest absolute difference between two arrays, divided by the largest absolute expected value."""
    largest = float(np.abs(expected).max(initial=0.0))
    return float(np.abs(found - expected).max(initial=0.0)) / max(largest, float(np.finfo(np.float32).tiny))


def _load(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a state dict into a module that was converted from an ONNX file.

    Raises:
        ModelError: a name of the state dict is missing or unknown, or a shape differs from the file's.
    """
    own = module.state_dict()
    for name in sorted(own.keys() | state.keys()):
        if name.endswith("num_batches_tracked"):
            continue  # a counter of training steps, which an ONNX file does not hold
        if name not in own:
            raise ModelError(f"{name} has no place in the file")
        if name not in state or state[name].shape != own[name].shape:
            found = list(state[name].shape) if name in state else "nothing"
            raise ModelError(f"{name}: shape {list(own[name].shape)} in the file, {found} in the new weights")
    module.load_state_dict(dict(state), strict=False)
