"""Layers and their definitions: which layers of different models could hold the same weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import nn

from ..models.networks import Network
from ..models.trace import LAYERS, LayerTrace, trace_layers

__all__ = ["Definition", "Kind", "Layer", "layers_of", "shareable"]

Definition = Literal["shape", "strict"]
"""``shape``: kind, weight shape and groups, so that stride, padding, dilation and bias may differ; ``strict``: all that
PyTorch prints of a layer, as the paper's published code has it."""

Kind = tuple[str, tuple[int, ...], int]


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer of a model; what can be shared of it is its weight."""

    model: str
    name: str
    definition: str
    shape: tuple[int, ...]
    bytes: int
    head: bool
    """An output of the model comes straight from it, so its weights mean this model's classes."""

    @property
    def parameter(self) -> str:
        """The weight's name in the model's state dict."""
        return f"{self.name}.weight"

    @property
    def kind(self) -> Kind:
        """What is equal for layers that can share.

        A class may leave its shape out when it prints itself, and half the bytes are another precision.
        """
        return self.definition, self.shape, self.bytes


def shareable(layers: Iterable[Layer], heads: bool = False) -> tuple[Layer, ...]:
    """Those that may share: without ``heads``, all but those whose weights mean one model's classes."""
    return tuple(layer for layer in layers if heads or not layer.head)


def layers_of(network: Network, definition: Definition = "shape", traced: LayerTrace | None = None) -> list[Layer]:
    """The layers of a model in the order in which they run, each weight once.

    Args:
        network: the model.
        definition: what must be equal for two layers to be able to share.
        traced: of the same model; made here when None.
    """
    traced = traced or trace_layers(network.cut)
    modules = dict(network.module.named_modules())
    found: dict[int, Layer] = {}
    for name in traced.order:
        layer = modules[name]
        assert isinstance(layer, LAYERS)
        weight = layer.weight
        found.setdefault(
            id(weight),
            Layer(
                network.name, name, _define(layer, definition), tuple(weight.shape), weight.nbytes, name in traced.heads
            ),
        )
    return list(found.values())


def _define(layer: nn.Module, definition: Definition) -> str:
    if definition == "strict":
        return str(layer)
    assert isinstance(layer, LAYERS)
    shape = "x".join(map(str, layer.weight.shape))
    groups = getattr(layer, "groups", 1)
    return f"{type(layer).__name__} {shape}" + (f" groups {groups}" if groups > 1 else "")
