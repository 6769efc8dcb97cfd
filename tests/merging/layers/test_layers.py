"""Test layers and their definitions."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tiny_models import tiny
from torch import Tensor, nn

from gemel.bundles.manifest import InputSpec
from gemel.compiler.heads import cut
from gemel.merging.layers.layers import Definition, Layer, layers_of, shareable
from gemel.merging.models.networks import Network


def network(model: nn.Module, name: str = "model") -> Network:
    """Cut a classifier of 32 x 32 pixels into a network without queries."""
    spec = InputSpec.model_construct(_fields_set={"size"}, size=(32, 32))
    return Network(name, (), cut(model, "classification", spec))


def layers(model: nn.Module, definition: Definition = "shape") -> dict[str, Layer]:
    """Return the layers of a model by name."""
    return {layer.name: layer for layer in layers_of(network(model), definition)}


class Tied(nn.Module):
    """A model in which two layers have one weight, as in language models."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.head = nn.Linear(4, 2)

    def forward(self, image: Tensor) -> Tensor:
        scores: Tensor = self.head(self.second(self.first(self.stem(image).mean((2, 3)))))
        return scores


def test_layers_of_a_model() -> None:
    model = tiny()
    found = layers(model)
    assert [layer.definition for layer in found.values()] == [
        "Conv2d 16x3x3x3",
        "Conv2d 16x1x3x3 groups 16",
        "Conv2d 32x16x1x1",
        "Linear 3x32",
    ]
    assert [layer.bytes for layer in found.values()] == [4 * 16 * 27, 4 * 16 * 9, 4 * 32 * 16, 4 * 3 * 32]
    assert [layer.head for layer in found.values()] == [False, False, False, True]
    assert {layer.parameter for layer in found.values()} <= set(model.state_dict())


def test_a_weight_that_two_layers_use_is_one_layer() -> None:
    assert list(layers(Tied())) == ["stem", "first", "head"]


@pytest.mark.parametrize("changes", [{"stride": 2}, {"padding": 1}, {"dilation": 2}, {"bias": False}])
def test_shape_looks_through_what_leaves_the_weight_alone(changes: dict[str, int]) -> None:
    def model(**changes: int) -> nn.Module:
        """Make a model of one convolution with these arguments."""
        return nn.Sequential(nn.Conv2d(3, 8, 3, **changes), nn.AdaptiveAvgPool2d(1), nn.Flatten())  # type: ignore[arg-type]

    one, other = model(), model(**changes)
    assert layers(one)["0"].definition == layers(other)["0"].definition
    assert layers(one, "strict")["0"].definition != layers(other, "strict")["0"].definition


def test_what_can_share_is_of_one_kind_and_no_head() -> None:
    first = Layer("a", "x", "MyConv()", (4, 4), 64, False)
    assert first.kind == replace(first, model="b", name="y").kind
    # A class may print itself without its shape, and the same shape may have another precision.
    assert len({first.kind, replace(first, shape=(2, 8)).kind, replace(first, bytes=32).kind}) == 3
    head = replace(first, head=True)
    assert shareable([first, head]) == (first,)
    assert shareable([first, head], heads=True) == (first, head)


def test_kinds_and_groups_are_told_apart() -> None:
    def first(layer: nn.Module) -> str:
        """Return the definition of a layer behind a convolution."""
        stem = nn.Conv2d(3, 8, 1)
        return layers(nn.Sequential(stem, layer, nn.AdaptiveAvgPool2d(1), nn.Flatten()))["1"].definition

    assert first(nn.Conv2d(8, 8, 1)) != first(nn.ConvTranspose2d(8, 8, 1))
    assert first(nn.Conv2d(8, 8, 1, groups=4)) != first(nn.Conv2d(8, 2, 1))
