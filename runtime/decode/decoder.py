"""Interface of a decoder: from the raw outputs of a model to the result of a query."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ...frames.preprocess import Geometry
from .results import Result

__all__ = ["DecodeContext", "Decoder", "FloatArray", "RunStage"]

FloatArray = NDArray[np.float32]
"""An array of float32."""
RunStage = Callable[[str, Mapping[str, FloatArray]], dict[str, FloatArray]]
"""A function that runs another stage of the same model: (stage, inputs by name) -> outputs by name."""


@dataclass(frozen=True)
class DecodeContext:
    """Settings of a query and tensors of its bundle, from which a decoder is made beside its spec."""

    tensor: Callable[[str], FloatArray]
    """Returns a tensor that the spec names, such as anchors. Called when a decoder is made, not while decoding."""
    labels: Sequence[str] | None = None
    """``labels[i]`` names class i, the background not counted; a class without a label is called by its number."""
    threshold: float | None = None
    """Score that a result must exceed; the spec's own threshold when None."""
    classes: Sequence[str] | None = None
    """Labels or class numbers that are reported; all classes when None."""


class Decoder(Protocol):
    """A function from the outputs of a model to the result of a query."""

    def __call__(self, outputs: Mapping[str, FloatArray], geometry: Geometry, run: RunStage) -> Result:
        """Decode the outputs of one image.

        Args:
            outputs: outputs of the ``main`` stage by name, each with a batch axis of 1.
            geometry: position of the frame in the model's input.
            run: runs a further stage of the model; two-stage detectors need that.
        """
        ...
