"""YOLOv3 and Tiny-YOLOv3 (Redmon and Farhadi, "YOLOv3: An Incremental Improvement", 2018).

``layers.i`` is layer i of Darknet's yolov3.cfg and yolov3-tiny.cfg. Shortcuts, routes, upsamplings and yolo layers are
counted too, so ``layers.81.conv`` is the layer that Darknet prints as number 81.

BatchNorm has eps 1e-5, as in the PyTorch ports and in Darknet's cuDNN path. Darknet's CPU code divides by
``sqrt(variance) + 1e-6`` instead. The difference only shows in channels whose variance is near zero.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from ...bundles.decode_specs import DecodeSpec, YoloDecode, YoloHead
from ...bundles.manifest import InputSpec
from ...errors import ModelError

__all__ = ["Darknet", "YoloV3", "YoloV3Tiny", "load_darknet", "yolov3", "yolov3_tiny"]


class _Convolution(nn.Module):
    """Convolutional layer of Darknet: with BatchNorm and leaky ReLU, or (``plain``) with a bias before a yolo layer."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int, plain: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=plain)
        self.bn = None if plain else nn.BatchNorm2d(outputs, eps=1e-5)
        self.activation = None if plain else nn.LeakyReLU(0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.bn is not None and self.activation is not None:
            x = self.activation(self.bn(x))
        return x


class _MaxPool(nn.Module):
    """Darknet's max pooling over 2 x 2 pixels. At stride 1 it keeps the size, with padding by -inf right and below."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        if self.stride > 1:
            return max_pool2d(x, 2, self.stride)
        # PyTorch pads with minus infinity too, but on all sides, so the first row and column are cut off. An explicit
        # Pad would put a constant into the graph, and runtimes fuse that wrongly with the pooling.
        return max_pool2d(x, 2, 1, padding=1)[:, :, 1:, 1:]


class _Shortcut(nn.Module):
    """Shortcut layer of Darknet: the sum of two layers' outputs."""

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return x + other


class _Route(nn.Module):
    """Route layer of Darknet: the concatenation of other layers' outputs along the channels."""

    def forward(self, *inputs: Tensor) -> Tensor:
        return inputs[0] if len(inputs) == 1 else torch.cat(inputs, 1)


class Darknet(nn.Module):
    """Network of Darknet layers with yolo heads; :func:`yolov3` and :func:`yolov3_tiny` make one.

    Args:
        rows: one row for each layer of the cfg: ``conv`` filters size stride, ``maxpool`` stride, ``shortcut`` from,
            ``route`` layers, ``upsample``, ``yolo`` mask. Negative layer numbers count back from the row. ``conv 0``
            stands before a yolo layer: it has as many filters as the yolo layer needs, and no BatchNorm.
        anchors: width and height of each anchor in input pixels; the masks of yolo layers are indices of this list.
        num_classes: number of classes to detect; there is no background class.
    """

    output_names: tuple[str, ...] = ()

    def __init__(self, rows: list[str], anchors: list[tuple[float, float]], num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.layers = nn.ModuleList()
        self._anchors: list[tuple[tuple[float, float], ...]] = []
        self._sources: list[tuple[int, ...]] = []
        """Numbers of the layers whose outputs each layer of a Darknet network reads, a list per layer; -1 is the
        image."""
        channels = [3]
        for index, row in enumerate(rows):
            kind, values = row.split()[0], [int(value) for value in row.split()[1:]]
            sources: tuple[int, ...] = (index - 1,)
            width = channels[-1]
            layer: nn.Module = nn.Identity()
            if kind == "conv":
                filters, size, stride = values
                plain = filters == 0
                width = filters or 3 * (5 + num_classes)
                layer = _Convolution(channels[-1], width, size, stride, plain)
            elif kind == "maxpool":
                layer = _MaxPool(values[0])
            elif kind == "upsample":
                layer = nn.Upsample(scale_factor=2, mode="nearest")
            elif kind == "shortcut":
                sources, layer = (index - 1, index + values[0]), _Shortcut()
            elif kind == "route":
                sources, layer = tuple(index + value if value < 0 else value for value in values), _Route()
                width = sum(channels[source + 1] for source in sources)
            else:
                self._anchors.append(tuple(anchors[value] for value in values))
            self.layers.append(layer)
            self._sources.append(sources)
            channels.append(width)
        self._last_use = {source: index for index, sources in enumerate(self._sources) for source in sources}
        self._heads = [index for index, row in enumerate(rows) if row.startswith("yolo")]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Compute the raw outputs of all yolo heads of a YOLOv3.

        Args:
            image: ``[N, 3, H, W]`` RGB, 0 to 1, H and W multiples of 32.

        Returns:
            ``[N, 3 * (5 + num_classes), H / stride, W / stride]`` for each of the strides 32, 16 and, in YOLOv3, 8. The
            channels are x, y, w, h, objectness and the classes of each anchor, all before the sigmoid.
        """
        values = {-1: image}
        heads: list[Tensor] = []
        for index, (layer, sources) in enumerate(zip(self.layers, self._sources, strict=True)):
            values[index] = layer(*(values[source] for source in sources))
            for source in {*sources}:
                if self._last_use[source] == index:
                    del values[source]
            if index in self._heads:
                heads.append(values[index])
        return tuple(heads)

    def decode(self, size: tuple[int, int]) -> tuple[DecodeSpec, dict[str, NDArray[np.float32]]]:
        """Return the spec of the decoder for a YOLOv3's raw outputs, for an input of ``size`` (height, width).

        The decoder needs no tensors, so the second value is empty.

        Thresholds are those of Darknet's demo: score 0.25, overlap 0.45 for non-maximum suppression.

        Raises:
            ModelError: height or width is not a multiple of 32.
        """
        if any(side % 32 for side in size):
            raise ModelError(f"input.size {list(size)}: {type(self).__name__} needs multiples of 32")
        heads = tuple(
            YoloHead(output=name, stride=32 >> index, anchors=anchors)
            for index, (name, anchors) in enumerate(zip(self.output_names, self._anchors, strict=True))
        )
        return YoloDecode(classes=self.num_classes, score_threshold=0.25, nms_threshold=0.45, heads=heads), {}

    def input_defaults(self) -> InputSpec:
        """Return Darknet's preprocessing for YOLOv3: 416 x 416 pixels, letterboxed with gray (0.5)."""
        return InputSpec(size=(416, 416), fit="letterbox", pad=0.5)


class YoloV3(Darknet):
    """YOLOv3: 107 layers, 61.9 M parameters for 80 classes."""

    output_names = ("stride32", "stride16", "stride8")

    def __init__(self, num_classes: int = 80) -> None:
        anchors = [10, 13, 16, 30, 33, 23, 30, 61, 62, 45, 59, 119, 116, 90, 156, 198, 373, 326]
        super().__init__(_yolov3_rows(), _pairs(anchors), num_classes)


class YoloV3Tiny(Darknet):
    """Tiny-YOLOv3: 24 layers, 8.9 M parameters for 80 classes."""

    output_names = ("stride32", "stride16")

    def __init__(self, num_classes: int = 80) -> None:
        anchors = [10, 14, 23, 27, 37, 58, 81, 82, 135, 169, 344, 319]
        super().__init__(_yolov3_tiny_rows(), _pairs(anchors), num_classes)


def yolov3(num_classes: int = 80) -> YoloV3:
    """Make a YOLOv3 with random weights.

    Args:
        num_classes: number of classes to detect; there is no background class.
    """
    return YoloV3(num_classes)


def yolov3_tiny(num_classes: int = 80) -> YoloV3Tiny:
    """Make a Tiny-YOLOv3 with random weights.

    Args:
        num_classes: number of classes to detect; there is no background class.
    """
    return YoloV3Tiny(num_classes)


def load_darknet(model: nn.Module, path: Path) -> None:
    """Load Darknet's binary ``.weights`` file into a YOLOv3 or Tiny-YOLOv3, in place.

    The file starts with a header: the version as three int32, then the number of images seen, an int64 since version
    0.2 and an int32 before. Float32 values follow. Each convolution has its bias, or BatchNorm's shift, scale, mean and
    variance, and then its kernel.

    Args:
        model: :class:`Darknet` network to load the weights into.
        path: Darknet's weight file.

    Raises:
        ModelError: the model is of another kind, or the file cannot be read or has another length than the model needs.
    """
    if not isinstance(model, Darknet):
        raise ModelError(f"{path}: Darknet weights fit yolov3 and yolov3_tiny, not {type(model).__name__}")
    try:
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error}") from error
    targets = list(_tensors(model))
    header = 12
    if len(content) >= header:
        major, minor, _ = content[:header].view("<i4").tolist()
        header += 8 if major * 10 + minor >= 2 else 4
    needed = header + 4 * sum(target.numel() for target in targets)
    if len(content) != needed:
        raise ModelError(
            f"{path}: {len(content)} bytes, but {type(model).__name__} with {model.num_classes} classes needs {needed}"
        )
    values, start = torch.from_numpy(content[header:].view("<f4").astype(np.float32)), 0
    with torch.no_grad():
        for target in targets:
            target.copy_(values[start : start + target.numel()].view_as(target))
            start += target.numel()


def _tensors(model: Darknet) -> list[Tensor]:
    """Return the tensors of a Darknet network in the order in which Darknet's weight file stores them."""
    found: list[Tensor | None] = []
    for layer in model.layers:
        if isinstance(layer, _Convolution):
            norm = layer.bn
            found += (
                [layer.conv.bias] if norm is None else [norm.bias, norm.weight, norm.running_mean, norm.running_var]
            )
            found.append(layer.conv.weight)
    return [tensor for tensor in found if tensor is not None]


def _pairs(values: list[int]) -> list[tuple[float, float]]:
    """Return a flat list of anchor sizes as pairs of width and height."""
    return [(float(width), float(height)) for width, height in zip(values[::2], values[1::2], strict=True)]


def _yolov3_rows() -> list[str]:
    """Return the layers of Darknet's yolov3.cfg, one row each, for :class:`Darknet`."""
    rows = ["conv 32 3 1"]
    for filters, blocks in ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)):
        rows += [f"conv {filters} 3 2"]
        rows += [f"conv {filters // 2} 1 1", f"conv {filters} 3 1", "shortcut -3"] * blocks
    for filters, mask, lateral in ((512, "6 7 8", 61), (256, "3 4 5", 36), (128, "0 1 2", None)):
        rows += [f"conv {filters} 1 1", f"conv {filters * 2} 3 1"] * 3
        rows += ["conv 0 1 1", f"yolo {mask}"]
        if lateral is not None:
            rows += ["route -4", f"conv {filters // 2} 1 1", "upsample", f"route -1 {lateral}"]
    return rows


def _yolov3_tiny_rows() -> list[str]:
    """Return the layers of Darknet's yolov3-tiny.cfg, one row each, for :class:`Darknet`."""
    rows: list[str] = []
    for filters, stride in ((16, 2), (32, 2), (64, 2), (128, 2), (256, 2), (512, 1)):
        rows += [f"conv {filters} 3 1", f"maxpool {stride}"]
    rows += ["conv 1024 3 1", "conv 256 1 1", "conv 512 3 1", "conv 0 1 1", "yolo 3 4 5"]
    rows += ["route -4", "conv 128 1 1", "upsample", "route -1 8"]
    rows += ["conv 256 3 1", "conv 0 1 1", "yolo 0 1 2"]
    return rows
