"""Interface of a decoder, which turns the raw outputs of a model into the result of a query."""

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
"""Array of float32, of any shape."""
RunStage = Callable[[str, Mapping[str, FloatArray]], dict[str, FloatArray]]
"""Function that runs a further stage of a model: (name of the stage, inputs by name) -> outputs by name."""


@dataclass(frozen=True)
class DecodeContext:
    """Settings of a query, and access to tensors of its bundle, that a decoder needs in addition to its spec."""

    tensor: Callable[[str], FloatArray]
    """Function that returns a tensor which the decoder's spec names, such as anchors. Called only to make a decoder."""
    labels: Sequence[str] | None = None
    """Names of the classes: ``labels[i]`` is class i, the background not counted. A class without a name is reported by
    its number."""
    threshold: float | None = None
    """Score that a result must exceed to be reported; None for the threshold of the decoder's spec."""
    classes: Sequence[str] | None = None
    """Labels or numbers of the classes that the query reports; None for all classes."""


class Decoder(Protocol):
    """Function that turns the outputs of a model for one image into the result of a query."""

    def __call__(self, outputs: Mapping[str, FloatArray], geometry: Geometry, run: RunStage) -> Result:
        """Decode a model's outputs for one image into the result of a query.

        Args:
            outputs: outputs of the ``main`` stage by name, each with a batch axis of 1.
            geometry: position of the frame in the model's input.
            run: function that runs a further stage of the model, for two-stage detectors.
        """
        ...
