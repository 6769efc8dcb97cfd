"""Residual networks for CIFAR's images of 32 x 32 pixels: ResNet-20, -32, -44 and so on.

He et al., "Deep Residual Learning for Image Recognition" (2016), section 4.2, with shortcuts of option A. Parameter
names are those of the public checkpoints of akamaster/pytorch_resnet_cifar10.
"""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ...bundles.decode_specs import ClassificationDecode, DecodeSpec
from ...bundles.manifest import InputSpec

__all__ = ["CifarResNet", "cifar_resnet"]


class _Block(nn.Module):
    """Basic residual block of a CIFAR ResNet: two 3 x 3 convolutions with BatchNorm, and a shortcut without parameters
    (option A)."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride, self.extra = stride, (width - channels) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.stride > 1:
            # Option A: subsample the image and pad the new channels with zeros.
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.extra, self.extra))
        return F.relu(x + y)


class CifarResNet(nn.Module):
    """Residual network for CIFAR images: three stages of ``blocks`` residual blocks with 16, 32 and 64 channels.

    :func:`cifar_resnet` makes one.
    """

    output_names: tuple[str, ...] = ("logits",)

    def __init__(self, blocks: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks, 1)
        self.layer2 = self._stage(16, 32, blocks, 2)
        self.layer3 = self._stage(32, 64, blocks, 2)
        self.linear = nn.Linear(64, num_classes)

    @staticmethod
    def _stage(channels: int, width: int, blocks: int, stride: int) -> nn.Sequential:
        """Return a stage of a CIFAR ResNet: ``blocks`` residual blocks, of which the first changes channels and
        stride."""
        first = _Block(channels, width, stride)
        return nn.Sequential(first, *(_Block(width, width, 1) for _ in range(blocks - 1)))

    def forward(self, image: Tensor) -> Tensor:
        """Compute logits ``[N, classes]`` from images ``[N, 3, 32, 32]``, RGB, normalised as for ImageNet."""
        x = F.relu(self.bn1(self.conv1(image)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits

    def decode(self, size: tuple[int, int]) -> tuple[DecodeSpec, dict[str, NDArray[np.float32]]]:
        """Return the spec of the decoder for a CIFAR ResNet's logits, and an empty mapping, as it needs no tensors.

        The spec is the same for every input ``size`` (height, width in pixels).
        """
        classes = self.linear.out_features
        return ClassificationDecode(classes=classes, top_k=min(5, classes)), {}

    def input_defaults(self) -> InputSpec:
        """Return the preprocessing that public checkpoints of CIFAR ResNets were trained with: 32 x 32 pixels, ImageNet
        statistics."""
        return InputSpec(size=(32, 32), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def cifar_resnet(depth: int = 20, num_classes: int = 10) -> CifarResNet:
    """Make a CIFAR ResNet with random weights.

    Args:
        depth: number of layers: 20, 32, 44, 56 or another 6 n + 2, with n blocks in each stage.
        num_classes: number of classes.

    Raises:
        ValueError: no network of this family has that depth.
    """
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise ValueError(f"depth must be 6 n + 2, such as 20, 32 or 44; got {depth}")
    return CifarResNet(blocks, num_classes)
