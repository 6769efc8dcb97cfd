"""Comparison of a bundle's outputs on this device with those of the models that it was compiled from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...bundles.manifest import ModelSpec
from ...bundles.reader import Bundle
from ...compiler.heads import as_tuple
from ...compiler.lowering.lower import cut_query
from ...compiler.lowering.onnx_source import run_file
from ...errors import BundleError
from ...runtime.backends import Backend, open_backend
from ...workload.document.paths import locate
from ...workload.document.schema import Query, Workload

__all__ = ["Comparison", "compare_with_source"]

Arrays = dict[str, NDArray[Any]]
"""Inputs or outputs of a stage, by name."""


@dataclass(frozen=True)
class Comparison:
    """Difference between a model of the bundle and its source."""

    model: str
    relative: float
    """Largest difference over all outputs of all stages, relative to the largest absolute value of its output."""
    passed: bool | None
    """Whether all differences are allowed. None for a model in lower precision with finite outputs, which its accuracy
    judges."""


def compare_with_source(
    bundle: Bundle, workload: Workload, *, rtol: float, atol: float, backend: str | None = None
) -> Iterator[Comparison]:
    """Run every model of a bundle and its source on the same seeded inputs, and compare the outputs.

    The reference is the PyTorch module in eager mode, or the source ONNX file without any of ONNX Runtime's
    optimisations.

    Args:
        bundle: bundle that was compiled from ``workload``.
        workload: workload with the source models.
        rtol: difference allowed, relative to the largest absolute value of an output.
        atol: absolute difference allowed beside ``rtol``.
        backend: name of the backend that runs the bundle; the bundle's own if None.

    Raises:
        BundleError: the workload has no query for a model of the bundle.
    """
    queries = {query.name: query for query in workload.queries}
    missing = [name for name in bundle.manifest.models if name not in queries]
    if missing:
        raise BundleError(f"{workload.path}: has no query {missing[0]!r}, from which the bundle has a model")
    with open_backend(bundle, backend) as opened:
        for name, model in bundle.manifest.models.items():
            yield _compare(opened, name, model, queries[name], workload.root, rtol, atol)


def _compare(
    backend: Backend, name: str, model: ModelSpec, query: Query, root: Path, rtol: float, atol: float
) -> Comparison:
    relative, passed = 0.0, True
    backend.activate(name)
    try:
        for stage, inputs, expected in _reference(query, model, root):
            found = backend.run(name, stage, inputs)
            if set(found) != set(expected):
                names = f"{', '.join(found)}, not {', '.join(expected)}"
                raise BundleError(f"model {name}: the bundle's outputs are {names}")
            for output, reference in expected.items():
                scale = float(np.abs(reference).max(initial=0.0))
                difference = float(np.abs(found[output] - reference).max(initial=0.0))
                # Not max(): max(0.0, nan) is 0.0, but a NaN must fail and be reported.
                ratio = difference / scale if scale else difference
                relative = relative if ratio <= relative else ratio
                passed = passed and bool(difference <= atol + rtol * scale)
    finally:
        backend.release(name)
    # Noise says nothing about a model in lower precision: its ranges were found on images.
    judged = model.precision == "fp32" or not np.isfinite(relative)
    return Comparison(name, relative, passed if judged else None)


def _reference(query: Query, model: ModelSpec, root: Path) -> Iterator[tuple[str, Arrays, Arrays]]:
    """Yield each stage of the source model: name, inputs and outputs."""
    image = _image(model)
    if query.model.onnx is not None:
        path = locate(query.model.onnx, root, f"query {query.name}: onnx")
        port = model.stages["main"].inputs[0].name
        yield "main", {port: image}, run_file(path, image)
        return
    parts = cut_query(query, root)
    if parts.input != model.input:
        raise BundleError(f"query {query.name}: the bundle was compiled for another input: {model.input}")
    for stage, part in parts.stages.items():
        examples: Mapping[str, torch.Tensor] = (
            {next(iter(part.inputs)): torch.from_numpy(image)} if stage == "main" else part.inputs
        )
        with torch.no_grad():
            outputs = as_tuple(part.module(*examples.values()))
        yield (
            stage,
            {port: value.numpy() for port, value in examples.items()},
            {port: value.numpy() for port, value in zip(part.outputs, outputs, strict=True)},
        )


def _image(model: ModelSpec) -> NDArray[np.float32]:
    """Return seeded noise in the range that the model's input has."""
    spec = model.input
    channels = 1 if spec.color == "gray" else 3
    pixels = np.random.default_rng(0).integers(0, 256, (1, channels, *spec.size)).astype(np.float32)
    mean, std = (np.resize(np.asarray(values, np.float32), channels)[:, None, None] for values in (spec.mean, spec.std))
    return np.ascontiguousarray((pixels * np.float32(spec.scale) - mean) / std)
