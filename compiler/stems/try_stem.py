"""Trial run of a stem: the two parts of a model must give the outputs of the whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ...bundles.manifest import Stage, StemSpec
from ...errors import first_line
from ...memory_limit import limited_memory

__all__ = ["stem_difference"]

_IMAGES = 2
"""Number of images that the rest runs on at once, after the stem has run on each alone."""
_RELATIVE = 1e-4
"""Largest difference of an output, relative to the output's largest value, that counts as rounding."""


def stem_difference(folder: Path, main: Stage, parts: StemSpec) -> str | None:
    """Run a model whole and in two parts on images of noise, and return how the outputs differ; None if they do not.

    The stem runs on one image after the other, and the rest on all images at once, so that a stem that depends on the
    number of images is found too. A model whose batch is fixed runs on one batch.

    Args:
        folder: folder of the bundle, with the weights.
        main: the manifest's entry of the whole model (its stage ``main``).
        parts: the manifest's entry of the model's stem and rest.
    """
    try:
        weights = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
        with limited_memory(weights):
            whole, stem, rest = (_open(folder, stage) for stage in (main, parts.stem, parts.rest))
            shape = main.inputs[0].shape
            batch = _IMAGES if isinstance(shape[0], str) else shape[0]
            sizes = [batch, *(1 if isinstance(size, str) else size for size in shape[1:])]
            image = (np.random.default_rng(0).random(sizes) * _brightest(main)).astype(main.inputs[0].dtype)
            expected = whole.run(None, {main.inputs[0].name: image})
            images = np.split(image, batch) if isinstance(shape[0], str) else [image]
            (port,) = parts.stem.inputs
            each = [stem.run(None, {port.name: one}) for one in images]
            values = {port.name: image}
            for index, output in enumerate(parts.stem.outputs):
                values[output.name] = np.concatenate([outputs[index] for outputs in each])
            found = rest.run(None, {entry.name: values[entry.name] for entry in parts.rest.inputs})
    except Exception as error:
        return first_line(error)
    for output, one, other in zip(main.outputs, expected, found, strict=True):
        if (difference := _difference(one, other)) > _RELATIVE:
            return f"output {output.name} by {difference:.1e} of its largest value"
    return None


def _brightest(main: Stage) -> float:
    """Return the largest value of the noise: 255 for an input of integers, which would be 0 otherwise."""
    return 1.0 if main.inputs[0].dtype.startswith("float") else 255.0


def _open(folder: Path, stage: Stage) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    # One run does not repay packing, which copies the weights.
    options.add_session_config_entry("session.disable_prepacking", "1")
    return ort.InferenceSession(str(folder / stage.file), options, providers=["CPUExecutionProvider"])


def _difference(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Return the largest difference of two outputs, relative to the largest value; infinite for other shapes."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return float("inf")
    if not one.size or np.array_equal(one, other, equal_nan=one.dtype.kind == "f"):
        return 0.0
    largest = float(np.abs(one).max()) or 1.0
    difference = float(np.abs(one.astype(np.float64) - other.astype(np.float64)).max()) / largest
    return difference if np.isfinite(difference) else float("inf")
