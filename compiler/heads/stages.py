"""The parts of a cut model: stages to export, and the protocol of models that know how they are decoded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...bundles.manifest import DecodeSpec, InputSpec
from ...errors import ModelError

__all__ = ["BATCH", "Cut", "StageModule", "Whole", "ZooModel", "as_tuple", "attempt", "example"]

BATCH = {"image": {0: "batch"}}


@dataclass(frozen=True)
class StageModule:
    """One graph to export.

    ``module`` holds the whole original model as its attribute ``model``, so that every parameter is called
    ``model.<name in the model's state dict>``; parameters that the stage does not use are not exported.
    """

    module: nn.Module
    inputs: Mapping[str, Tensor]
    """Example inputs by name, in the order of ``forward``."""
    outputs: tuple[str, ...]
    free: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    """Free dimensions: input name -> axis -> name of the dimension, e.g. ``{"image": {0: "batch"}}``."""


@dataclass(frozen=True)
class Cut:
    """A model as stages, with the decoder that its outputs need.

    Tensors that the decoder refers to (anchors) are given by the names used in ``decode``; the compiler stores
    them in the blob and puts their hashes in place of the names.
    """

    stages: Mapping[str, StageModule]
    decode: DecodeSpec
    input: InputSpec
    """What the stage ``main`` takes."""
    tensors: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)


@runtime_checkable
class ZooModel(Protocol):
    """A module that says how its outputs are decoded; ``forward`` gives them as a tensor or a tuple of tensors."""

    output_names: tuple[str, ...]

    def decode(self, size: tuple[int, int]) -> tuple[DecodeSpec, dict[str, NDArray[np.float32]]]:
        """How to read the outputs for an input of ``size`` (height, width), and the tensors that this names."""
        ...

    def input_defaults(self) -> InputSpec:
        """What the model was made for."""
        ...


class Whole(nn.Module):
    """A model as it is, under the attribute name that stages need."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Any:
        return self.model(image)


def as_tuple(outputs: Any) -> tuple[Tensor, ...]:
    """What a module gave, where one tensor may come alone."""
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


def example(spec: InputSpec) -> Tensor:
    """Noise like a normalised image, ``[2, C, height, width]``: a batch of one would not export as free."""
    channels = 1 if spec.color == "gray" else 3
    return torch.randn(2, channels, *spec.size, generator=torch.Generator().manual_seed(0))


def attempt(model: nn.Module, module: nn.Module, *inputs: Tensor) -> Any:
    """Outputs of ``module``, a part of ``model``; shapes are learnt from them.

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
