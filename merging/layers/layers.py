"""Layers of models and their definitions: layers of one definition can hold the same weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import nn

from ..models.networks import Network
from ..models.trace import LAYERS, LayerTrace, trace_layers

__all__ = ["Definition", "Kind", "Layer", "layers_of", "shareable"]

Definition = Literal["shape", "strict"]
"""Name of the rule that says when two layers can share a weight.

``shape``: layer type, weight shape and number of convolution groups must be equal; stride, padding, dilation and bias
may differ. ``strict``: the texts that PyTorch prints of the two layers must be equal, as in the published code of
the GEMEL paper."""

Kind = tuple[str, tuple[int, ...], int]
"""Key of a layer: definition, weight shape and weight bytes. Layers can share a weight if all three are equal."""


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer of a model. Its weight can be shared; its bias cannot."""

    model: str
    name: str
    definition: str
    shape: tuple[int, ...]
    bytes: int
    head: bool
    """Whether the layer gives an output of the model, with no other layer in between. The weights of such a layer
    belong to the model's own classes."""

    @property
    def parameter(self) -> str:
        """Name of the layer's weight in the model's state dict."""
        return f"{self.name}.weight"

    @property
    def kind(self) -> Kind:
        """Key that is equal for layers that can share a weight: definition, weight shape and weight bytes.

        The definition alone does not suffice. A layer's printed text, which ``strict`` compares, may lack the weight
        shape. A weight of the same shape with half the bytes has another precision.
        """
        return self.definition, self.shape, self.bytes


def shareable(layers: Iterable[Layer], heads: bool = False) -> tuple[Layer, ...]:
    """Return the layers that may share. Layers that give a model's outputs are included only if ``heads`` is true."""
    return tuple(layer for layer in layers if heads or not layer.head)


def layers_of(network: Network, definition: Definition = "shape", traced: LayerTrace | None = None) -> list[Layer]:
    """Return the layers of a model in the order in which they run, one layer for each distinct weight.

    Args:
        network: the model.
        definition: rule that says when two layers may share a weight.
        traced: trace of the same model; if None, the model is run to make the trace.
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
    """Return a text that is equal for layers that can share a weight under the rule ``definition``."""
    if definition == "strict":
        return str(layer)
    assert isinstance(layer, LAYERS)
    shape = "x".join(map(str, layer.weight.shape))
    groups = getattr(layer, "groups", 1)
    return f"{type(layer).__name__} {shape}" + (f" groups {groups}" if groups > 1 else "")
