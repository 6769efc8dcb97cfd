"""Types for a model that is cut into stages to export, and the protocol of models that name their own decoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...bundles.decode_specs import DecodeSpec
from ...bundles.manifest import InputSpec
from ...errors import ModelError

__all__ = ["BATCH", "Cut", "StageModule", "Whole", "ZooModel", "as_tuple", "attempt", "example"]

BATCH = {"image": {0: "batch"}}
"""Free (dynamic) dimensions of a stage whose only input is a batch of images, as in :attr:`StageModule.free`."""


@dataclass(frozen=True)
class StageModule:
    """Part of a model that is exported as one ONNX graph, with example inputs and the names of its outputs."""

    module: nn.Module
    """Module of the stage. It holds the whole original model as its attribute ``model``, so that every parameter is
    called ``model.<name in the model's state dict>``. Parameters that the stage does not use are not exported."""
    inputs: Mapping[str, Tensor]
    """Example inputs of a model's stage by name, in the order of the stage module's ``forward``."""
    outputs: tuple[str, ...]
    free: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    """Free (dynamic) dimensions of a stage's inputs: input -> axis -> name, such as ``{"image": {0: "batch"}}``."""


@dataclass(frozen=True)
class Cut:
    """Model cut into stages to export, with the spec of the decoder that reads their outputs."""

    stages: Mapping[str, StageModule]
    decode: DecodeSpec
    input: InputSpec
    """Size, normalisation and colour of the images that the stage ``main`` takes."""
    tensors: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    """Tensors that the decoder's spec refers to (anchors), by the names in the spec. The compiler stores them in the
    blob and replaces the names by hashes."""
    labels: tuple[str, ...] | None = None
    """Names of the classes that the model itself has; None if it has none."""


@runtime_checkable
class ZooModel(Protocol):
    """Module that names the decoder for its outputs. ``forward`` returns a tensor or a tuple of tensors."""

    output_names: tuple[str, ...]

    def decode(self, size: tuple[int, int]) -> tuple[DecodeSpec, dict[str, NDArray[np.float32]]]:
        """Return the spec of the model's decoder for inputs of ``size`` (height, width), and the spec's tensors."""
        ...

    def input_defaults(self) -> InputSpec:
        """Return the input that the model was made for: image size, normalisation and colour."""
        ...


class Whole(nn.Module):
    """Stage module that runs a whole model. Its attribute ``model`` holds the model, after which weights are named."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Any:
        return self.model(image)


def as_tuple(outputs: Any) -> tuple[Tensor, ...]:
    """Return a module's outputs as a tuple; a module with one output may return the tensor alone."""
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


def example(spec: InputSpec) -> Tensor:
    """Return two images of seeded noise, ``[2, C, height, width]``; the exporter would fix a batch size of one."""
    channels = 1 if spec.color == "gray" else 3
    return torch.randn(2, channels, *spec.size, generator=torch.Generator().manual_seed(0))


def attempt(model: nn.Module, module: nn.Module, *inputs: Tensor) -> Any:
    """Run a part of a PyTorch model on example inputs and return its outputs.

    Args:
        model: whole model, whose class errors name.
        module: part of the model to run.
        inputs: inputs of the part.

    Raises:
        ModelError: the model does not run on such inputs.
    """
    try:
        with torch.no_grad():
            return module(*inputs)
    except Exception as error:
        shapes = ", ".join(str(list(value.shape)) for value in inputs)
        raise ModelError(
            f"{type(model).__name__} does not run on an input of shape {shapes}: {str(error).strip() or repr(error)}; "
            "set model.input to the size and color it takes"
        ) from error
