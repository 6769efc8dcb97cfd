"""Layers and their definitions: layers of one definition can hold the same weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import nn

from ..models.networks import Network
from ..models.trace import LAYERS, LayerTrace, trace_layers

__all__ = ["Definition", "Kind", "Layer", "layers_of", "shareable"]

Definition = Literal["shape", "strict"]
"""Rule that says when two layers can share a weight.

``shape``: layer type, weight shape and number of convolution groups must be equal; stride, padding, dilation and bias
may differ. ``strict``: everything that PyTorch prints of a layer must be equal, as in the paper's published code."""

Kind = tuple[str, tuple[int, ...], int]
"""Definition, weight shape and weight bytes; layers can share a weight if all three are equal."""


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer of a model. Its weight can be shared; its bias cannot."""

    model: str
    name: str
    definition: str
    shape: tuple[int, ...]
    bytes: int
    head: bool
    """Whether an output of the model comes straight from the layer: its weights belong to this model's classes."""

    @property
    def parameter(self) -> str:
        """The weight's name in the model's state dict."""
        return f"{self.name}.weight"

    @property
    def kind(self) -> Kind:
        """Key that is equal for layers that can share a weight.

        The definition alone does not suffice: a class may print itself without its shape, and the same shape with half
        the bytes has another precision.
        """
        return self.definition, self.shape, self.bytes


def shareable(layers: Iterable[Layer], heads: bool = False) -> tuple[Layer, ...]:
    """Return the layers that may share. Layers that give a model's outputs are among them only with ``heads``."""
    return tuple(layer for layer in layers if heads or not layer.head)


def layers_of(network: Network, definition: Definition = "shape", traced: LayerTrace | None = None) -> list[Layer]:
    """List the layers of a model in the order in which they run, each weight once.

    Args:
        network: the model.
        definition: what must be equal for two layers to be able to share.
        traced: trace of the same model; if None, the model is run here.
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
    """Return the definition of a layer as text."""
    if definition == "strict":
        return str(layer)
    assert isinstance(layer, LAYERS)
    shape = "x".join(map(str, layer.weight.shape))
    groups = getattr(layer, "groups", 1)
    return f"{type(layer).__name__} {shape}" + (f" groups {groups}" if groups > 1 else "")
