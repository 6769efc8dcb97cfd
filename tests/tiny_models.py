"""Small networks that the tests' workloads name as factories."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TinyNet(nn.Module):
    """A convolution, a depthwise and a pointwise convolution, each with BatchNorm, and a classifier."""

    def __init__(self, num_classes: int = 3, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.pointwise = nn.Conv2d(width, 2 * width, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(2 * width)
        self.head = nn.Linear(2 * width, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.stem(image)))
        x = nn.functional.relu6(self.norm2(self.depthwise(x)))
        x = torch.relu(self.norm3(self.pointwise(x)))
        scores: Tensor = self.head(x.mean((2, 3)))
        return scores


class TinyTransformer(nn.Module):
    """A model of patches in which linear layers, applied to many rows at once, hold most of the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 8, stride=8)
        self.mix = nn.Sequential(nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 32))
        self.head = nn.Linear(32, 4)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2)
        scores: Tensor = self.head((x + self.mix(x)).mean(1))
        return scores


class TinyDeterminant(nn.Module):
    """A model with an operator that TensorRT does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 3)

    def forward(self, image: Tensor) -> Tensor:
        scores: Tensor = self.head(torch.linalg.det(image))
        return scores


def trained_looking(model: nn.Module, seed: int) -> nn.Module:
    """Randomise a model's BatchNorms, in place, so that a wrongly folded one changes the outputs; return the model."""
    generator = torch.Generator().manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for value, low, high in (
                (layer.running_mean, -0.2, 0.2),
                (layer.running_var, 0.5, 1.5),
                (layer.weight.data, 0.5, 1.5),
                (layer.bias.data, -0.2, 0.2),
            ):
                assert value is not None
                value.copy_(torch.rand(value.shape, generator=generator) * (high - low) + low)
    return model


def tiny(seed: int = 0, kernels_of: nn.Module | None = None, **args: int) -> TinyNet:
    """Make a TinyNet with seeded weights, in eval mode.

    Args:
        seed: seed of the weights and of the BatchNorms.
        kernels_of: a model to copy the weights of convolutions and classifier from.
        args: arguments of TinyNet.
    """
    torch.manual_seed(seed)
    model = TinyNet(**args)
    if kernels_of is not None:
        state = {name: value for name, value in kernels_of.state_dict().items() if "norm" not in name}
        model.load_state_dict(state, strict=False)
    trained_looking(model, seed)
    return model.eval()
