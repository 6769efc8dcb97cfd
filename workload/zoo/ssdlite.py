"""SSDLite and SSD with a MobileNetV2 backbone, as the TensorFlow object-detection API builds and trains them.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (2018), section 6.2, and the API's
``ssd_mobilenet_v2`` feature extractor, ``ssd_anchor_generator`` and convolutional box predictor. The backbone's
parameters are named as in torchvision's ``mobilenet_v2``, so that the layers of both line up.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ...bundles.decode_specs import DecodeSpec, SsdDecode
from ...bundles.manifest import InputSpec

__all__ = ["SsdMobileNetV2", "same_padding", "ssd_mobilenet_v2", "ssdlite_mobilenet_v2"]

# Expansion, output channels, blocks, first stride: table 2 of the paper.
_BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
_TAP = 14
"""Number of the MobileNetV2 block whose expansion, at stride 16, is the first feature level of SSDLite's heads."""
_EXTRAS = (512, 256, 256, 128)
"""Number of channels of each of SSDLite's feature levels behind the backbone."""
_LEVELS = (576, 1280, *_EXTRAS)
"""Number of channels of each feature level that SSDLite's heads read."""
_SCALES = (0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 1.0)
"""SSDLite's anchor scales as fractions of the input's shorter side: one for each feature level, and 1.0 to end the last
level's range. The first level has smaller anchors of its own."""
# 0.3333 and not 1/3: the API's default, with which the published models were trained.
_RATIOS = (1.0, 2.0, 0.5, 3.0, 0.3333)
_BN_EPS = 1e-3


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return TensorFlow's SAME padding along one axis, as pixels before and after. An odd pixel goes after.

    Args:
        size: size of the input in pixels.
        kernel: size of the kernel in pixels.
        stride: step between windows in pixels.

    >>> same_padding(300, kernel=3, stride=2), same_padding(75, kernel=3, stride=2)
    ((0, 1), (1, 1))
    """
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def _conv(
    inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, *, batch_norm: bool
) -> tuple[nn.Module, ...]:
    """Return a convolution and its BatchNorm, or a convolution with a bias that stands for a folded BatchNorm."""
    # At stride 1, SAME padding is equal on all sides, and the convolution pads by itself.
    padding = kernel // 2 if stride == 1 else 0
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=not batch_norm)
    return (conv, nn.BatchNorm2d(outputs, eps=_BN_EPS)) if batch_norm else (conv,)


class _Conv(nn.Sequential):
    """Convolution with SAME padding, BatchNorm and ReLU6, numbered as in torchvision's ``Conv2dNormActivation``."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, *, batch_norm: bool = True
    ) -> None:
        layers = _conv(inputs, outputs, kernel, stride, groups, batch_norm=batch_norm)
        super().__init__(*layers, nn.ReLU6(inplace=True))
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        if self.stride > 1:
            top, bottom = same_padding(x.shape[2], self.kernel, self.stride)
            left, right = same_padding(x.shape[3], self.kernel, self.stride)
            x = F.pad(x, (left, right, top, bottom))
        for layer in self:
            x = layer(x)
        return x


class _InvertedResidual(nn.Module):
    """Inverted residual block of MobileNetV2: expansion, depthwise convolution, projection.

    The input is added to the output if stride is 1 and the channels are equal.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int, batch_norm: bool) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expands = expansion > 1
        self.residual = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            *([_Conv(inputs, hidden, batch_norm=batch_norm)] if self.expands else []),
            _Conv(hidden, hidden, 3, stride, groups=hidden, batch_norm=batch_norm),
            *_conv(hidden, outputs, batch_norm=batch_norm),
        )

    def expand(self, x: Tensor) -> Tensor:
        """Apply an inverted residual block's expansion, a convolution to more channels; a block with expansion 1
        returns ``x``."""
        expanded: Tensor = self.conv[0](x) if self.expands else x
        return expanded

    def project(self, expanded: Tensor) -> Tensor:
        """Apply an inverted residual block's depthwise convolution and projection to expanded channels."""
        for layer in list(self.conv)[self.expands :]:
            expanded = layer(expanded)
        return expanded

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.expand(x))
        return x + y if self.residual else y


class _Head(nn.Sequential):
    """Head of a detector that gives ``values`` numbers for each anchor of one feature level.

    ``[N, C, H, W]`` -> ``[N, H * W * anchors, values]``. SSDLite's head has a depthwise convolution first.
    """

    def __init__(self, channels: int, anchors: int, values: int, lite: bool, batch_norm: bool) -> None:
        depthwise = [_Conv(channels, channels, 3, groups=channels, batch_norm=batch_norm)] if lite else []
        super().__init__(*depthwise, nn.Conv2d(channels, anchors * values, 1))
        self.anchors, self.values = anchors, values

    def forward(self, x: Tensor) -> Tensor:
        rows = x.shape[2] * x.shape[3] * self.anchors
        for layer in self:
            x = layer(x)
        return x.permute(0, 2, 3, 1).reshape(-1, rows, self.values)


class SsdMobileNetV2(nn.Module):
    """SSDLite-MobileNetV2 or SSD-MobileNetV2: a one-stage detector with six feature levels.

    :func:`ssdlite_mobilenet_v2` and :func:`ssd_mobilenet_v2` make one.

    Args:
        num_classes: number of classes to detect, the background not counted.
        lite: whether extra levels and heads have depthwise convolutions, as SSDLite's do, in place of plain ones.
        batch_norm: whether convolutions have BatchNorms; otherwise each has a bias, as in files whose BatchNorms were
            folded.
    """

    output_names: tuple[str, ...] = ("logits", "boxes")

    def __init__(self, num_classes: int = 1, *, lite: bool = True, batch_norm: bool = True) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.features = nn.Sequential(
            _Conv(3, 32, 3, 2, batch_norm=batch_norm),
            *_backbone(32, batch_norm),
            _Conv(320, 1280, batch_norm=batch_norm),
        )
        self.extras = nn.ModuleList(
            nn.Sequential(*_extra(inputs, outputs, lite, batch_norm))
            for inputs, outputs in zip(_LEVELS[1:], _EXTRAS, strict=False)
        )
        self.class_heads, self.box_heads = (
            nn.ModuleList(
                _Head(channels, len(_shapes(level)), values, lite, batch_norm) for level, channels in enumerate(_LEVELS)
            )
            for values in (num_classes + 1, 4)
        )

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the raw outputs of all heads of an SSD or SSDLite detector.

        Args:
            image: ``[N, 3, H, W]`` RGB, -1 to 1.

        Returns:
            ``logits [N, A, num_classes + 1]`` before the sigmoid, with the background as class 0, and
            ``boxes [N, A, 4]``, (dx, dy, dw, dh) relative to the anchors of :meth:`decode`.
        """
        levels: list[Tensor] = []
        x = image
        for index, block in enumerate(self.features):
            if index == _TAP and isinstance(block, _InvertedResidual):
                levels.append(block.expand(x))
                x = block.project(levels[-1])
            else:
                x = block(x)
        levels.append(x)
        for extra in self.extras:
            levels.append(extra(levels[-1]))
        logits = [head(level) for head, level in zip(self.class_heads, levels, strict=True)]
        boxes = [head(level) for head, level in zip(self.box_heads, levels, strict=True)]
        return torch.cat(logits, 1), torch.cat(boxes, 1)

    def decode(self, size: tuple[int, int]) -> tuple[DecodeSpec, dict[str, NDArray[np.float32]]]:
        """Return the spec of the decoder for SSDLite's outputs, and the anchors, for an input of ``size`` (height,
        width)."""
        spec = SsdDecode(
            classes=self.num_classes,
            score_threshold=0.3,
            anchors="anchors",
            activation="sigmoid",
            background=True,
            box_weights=(10.0, 10.0, 5.0, 5.0),
        )
        return spec, {"anchors": _anchors(size)}

    def input_defaults(self) -> InputSpec:
        """Return the preprocessing of the published SSDLite-MobileNetV2 models: 300 x 300 pixels, values from -1 to
        1."""
        return InputSpec(size=(300, 300), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def ssdlite_mobilenet_v2(num_classes: int = 1) -> SsdMobileNetV2:
    """Make an SSDLite-MobileNetV2 of the TensorFlow object-detection API with random weights.

    Args:
        num_classes: number of classes to detect, the background not counted.
    """
    return SsdMobileNetV2(num_classes)


def ssd_mobilenet_v2(num_classes: int = 1, batch_norm: bool = True) -> SsdMobileNetV2:
    """Make an SSD-MobileNetV2 of the TensorFlow object-detection API with random weights.

    Args:
        num_classes: number of classes to detect, the background not counted.
        batch_norm: whether convolutions have BatchNorms; otherwise each has a bias, as in TensorFlow Lite's files.
    """
    return SsdMobileNetV2(num_classes, lite=False, batch_norm=batch_norm)


def _backbone(channels: int, batch_norm: bool) -> Iterator[_InvertedResidual]:
    """Yield the blocks of MobileNetV2 for a stem with ``channels`` output channels."""
    for expansion, outputs, blocks, stride in _BLOCKS:
        for block in range(blocks):
            yield _InvertedResidual(channels, outputs, stride if block == 0 else 1, expansion, batch_norm)
            channels = outputs


def _extra(inputs: int, outputs: int, lite: bool, batch_norm: bool) -> Iterator[_Conv]:
    """Yield the convolutions that lead from one of SSD's feature levels to the next, which is half as large."""
    half = outputs // 2
    yield _Conv(inputs, half, batch_norm=batch_norm)
    if lite:
        yield _Conv(half, half, 3, 2, groups=half, batch_norm=batch_norm)
        yield _Conv(half, outputs, batch_norm=batch_norm)
    else:
        yield _Conv(half, outputs, 3, 2, batch_norm=batch_norm)


def _shapes(level: int) -> list[tuple[float, float]]:
    """Return the anchor shapes of a feature level of SSDLite as pairs of scale and aspect ratio.

    The scale is a fraction of the input's shorter side; the ratio is width divided by height.
    """
    if level == 0:
        return [(0.1, 1.0), (0.2, 2.0), (0.2, 0.5)]
    scale, following = _SCALES[level], _SCALES[level + 1]
    return [*((scale, ratio) for ratio in _RATIOS), (math.sqrt(scale * following), 1.0)]


def _anchors(size: tuple[int, int]) -> NDArray[np.float32]:
    """Return the anchors of SSDLite, ``[A, 4]``, for an input of ``size`` (height, width in pixels).

    Boxes are x1 y1 x2 y2 in input pixels, in the order of the heads' outputs: level, row, column, shape.
    """
    height, width = size
    rows, columns = math.ceil(height / 16), math.ceil(width / 16)
    levels = []
    for level in range(len(_LEVELS)):
        shapes = np.array(_shapes(level))
        root = np.sqrt(shapes[:, 1])
        half = min(size) * shapes[:, :1] * np.stack([root, 1 / root], 1) / 2
        y, x = (np.arange(rows) + 0.5) * height / rows, (np.arange(columns) + 0.5) * width / columns
        centre = np.stack(np.meshgrid(x, y), 2)[:, :, None]
        levels.append(np.concatenate([centre - half, centre + half], 3).reshape(-1, 4))
        rows, columns = math.ceil(rows / 2), math.ceil(columns / 2)
    return np.concatenate(levels).astype(np.float32)
