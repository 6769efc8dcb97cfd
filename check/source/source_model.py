"""Source models of a bundle, run as they are: PyTorch modules in eager mode, ONNX files without optimisations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ...bundles.manifest import ModelSpec
from ...compiler.lowering.onnx_file import open_onnx
from ...compiler.lowering.onnx_ports import feeds_of, find_image_port
from ...compiler.lowering.onnx_source import run_file
from ...console import missing_extra
from ...errors import BundleError
from ...workload.document.paths import locate
from ...workload.document.schema import Input, Query

if TYPE_CHECKING:
    from ...compiler.heads import Cut

__all__ = ["Arrays", "SourceModel", "file_difference", "open_source_model", "relative_difference"]

Arrays = dict[str, NDArray[Any]]
"""Type of the inputs or outputs of a model's stage: name -> array."""


class SourceModel(Protocol):
    """Source model of a query, which can be run stage by stage as the bundle's model can."""

    def examples(self) -> Mapping[str, Arrays]:
        """Return seeded example inputs for every stage of a source model but ``main``: stage -> inputs by name."""
        ...

    def run(self, stage: str, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Run a stage of a source model, and return the stage's outputs by name."""
        ...

    def runtime_difference(self, stage: str, inputs: Mapping[str, NDArray[Any]]) -> float | None:
        """Return the relative difference between ONNX Runtime's optimised and plain runs of a source model.

        None if ONNX Runtime cannot run the source as it is.
        """
        ...


class _OnnxModel:
    """Source model that is an ONNX file, run without any of ONNX Runtime's optimisations."""

    def __init__(self, path: Path, outputs: tuple[str, ...]) -> None:
        self._path, self._outputs = path, outputs

    def examples(self) -> Mapping[str, Arrays]:
        return {}

    def run(self, stage: str, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        (image,) = inputs.values()
        return run_file(self._path, image, self._outputs)

    def runtime_difference(self, stage: str, inputs: Mapping[str, NDArray[Any]]) -> float | None:
        (image,) = inputs.values()
        size = (image.shape[2], image.shape[3])
        try:
            port = find_image_port(open_onnx(self._path), self._path, Input(size=size))
            return file_difference(self._path, feeds_of(port, image))
        except Exception:  # a file that declares another size, or anything else that ONNX Runtime refuses
            return None


class _ModuleModel:
    """Source model that is a PyTorch module, cut into stages as the compiler cuts it and run in eager mode."""

    def __init__(self, parts: Cut) -> None:
        self._parts = parts

    def examples(self) -> Mapping[str, Arrays]:
        return {
            name: {port: value.numpy() for port, value in stage.inputs.items()}
            for name, stage in self._parts.stages.items()
            if name != "main"
        }

    def run(self, stage: str, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        import torch

        from ...compiler.heads import as_tuple

        part = self._parts.stages[stage]
        with torch.no_grad():
            values = as_tuple(part.module(*(torch.from_numpy(inputs[name].copy()) for name in part.inputs)))
        return {name: value.numpy() for name, value in zip(part.outputs, values, strict=True)}

    def runtime_difference(self, stage: str, inputs: Mapping[str, NDArray[Any]]) -> float | None:
        return None


def open_source_model(query: Query, model: ModelSpec, root: Path) -> SourceModel:
    """Open the source model that a query names, to compare a bundle with it.

    Args:
        query: query of the workload.
        model: model of the bundle that was compiled from the query's model.
        root: folder of the workload.

    Raises:
        BundleError: the workload asks for another input than the bundle's model has.
        ModelError: the source model cannot be built or read.
    """
    if query.model.onnx is not None:
        path = locate(query.model.onnx, root, f"query {query.name}: onnx")
        return _OnnxModel(path, tuple(port.name for port in model.stages["main"].outputs))
    try:
        from ...compiler.lowering.pytorch import cut_query
    except ModuleNotFoundError as error:
        raise missing_extra(error, f"query {query.name}: a model from a factory", "compiler") from error
    parts = cut_query(query, root)
    if parts.input != model.input:
        raise BundleError(f"query {query.name}: the bundle was compiled for another input: {model.input}")
    return _ModuleModel(parts)


def file_difference(path: Path, inputs: Mapping[str, NDArray[Any]]) -> float:
    """Return the relative difference between ONNX Runtime's optimised and plain runs of an ONNX file.

    Args:
        path: ONNX file.
        inputs: inputs of the file, by name.

    Returns:
        Largest difference over all outputs, relative to the largest absolute value of the output.
    """
    results = []
    for level in (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL):
        options = ort.SessionOptions()
        options.graph_optimization_level = level
        options.log_severity_level = 4
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        results.append(session.run(None, dict(inputs)))
    return max((relative_difference(one, other) for one, other in zip(*results, strict=True)), default=0.0)


def relative_difference(found: NDArray[Any], reference: NDArray[Any]) -> float:
    """Return the largest difference between two arrays, relative to the largest absolute value of the reference.

    For integers, which are class numbers or indices, return the fraction of values that differ. Infinite for arrays of
    different shapes, and if a value is finite in only one of the arrays.
    """
    if found.shape != reference.shape:
        return float("inf")
    if reference.dtype.kind != "f":
        return float(np.mean(found != reference)) if reference.size else 0.0
    ours, theirs = found.astype(np.float64), reference.astype(np.float64)
    same = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
    with np.errstate(invalid="ignore"):
        difference = np.where(same, 0.0, np.abs(ours - theirs))
    difference = np.where(np.isfinite(difference), difference, np.inf)
    scale = float(np.abs(theirs[np.isfinite(theirs)]).max(initial=0.0))
    largest = float(difference.max(initial=0.0))
    return largest / scale if scale else largest
