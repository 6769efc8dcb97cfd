"""Decoding of the raw outputs of a model with one stage into the answer to each image."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NoReturn

from ...compiler.heads import Cut
from ...frames.preprocess import Geometry
from ...runtime.decode import DecodeContext, Decoder, build_decoder
from ...runtime.decode.results import Result
from . import Outputs

__all__ = ["StageDecoder"]


class StageDecoder:
    """Decoder of a model with one stage. Classes are named by their index.

    Args:
        cut: the model's stages and tensors.
        threshold: score from which an answer counts; None for the threshold of the model's decoder.
    """

    def __init__(self, cut: Cut, threshold: float | None) -> None:
        self._cut, self._threshold = cut, threshold
        self._names = cut.stages["main"].outputs

    def __call__(self, outputs: Outputs, places: Sequence[Geometry]) -> list[Result]:
        """Return the answer to each image of a batch.

        Args:
            outputs: raw outputs on the CPU, ``[N, ...]`` each.
            places: size and place of each image in the model's input.
        """
        arrays = {name: value.numpy() for name, value in zip(self._names, outputs, strict=True)}
        return [
            self._decode({name: value[[row]] for name, value in arrays.items()}, place, _no_stage)
            for row, place in enumerate(places)
        ]

    @cached_property
    def _decode(self) -> Decoder:
        """Decoder, built when it is first needed: models whose outputs cannot be decoded here are refused before."""
        labels = [str(index) for index in range(getattr(self._cut.decode, "classes", 0))] or None
        return build_decoder(self._cut.decode, DecodeContext(self._cut.tensors.__getitem__, labels, self._threshold))


def _no_stage(name: str, inputs: object) -> NoReturn:
    """Raise AssertionError: models with stages behind ``main`` are refused before, so no judge asks for a stage."""
    raise AssertionError(f"a model of one stage asks for stage {name}")
