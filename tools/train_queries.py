"""Train and judge a detector on labelled frames of a camera, and a classifier on windows of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from camera_labels import detect
from camera_sets import Scene
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.ops import box_iou

from gemel.bundles.decode_specs import SsdDecode
from gemel.frames.preprocess import preprocess
from gemel.runtime.decode.average_precision import mean_average_precision
from gemel.runtime.decode.results import Detection
from gemel.workload.zoo.ssdlite import SsdMobileNetV2

__all__ = [
    "augment",
    "classifier_accuracy",
    "detector_accuracy",
    "fit_head",
    "load_windows",
    "train_classifier",
    "train_detector",
]

_THRESHOLD = 0.3
"""Minimum score of a detection that a query reports."""
_DETECTOR_STEPS, _DETECTOR_BATCH, _DETECTOR_RATE = 100, 8, 7e-4
_CLASSIFIER_STEPS, _CLASSIFIER_BATCH, _CLASSIFIER_RATE = 90, 32, 5e-4
_HEAD_STEPS, _HEAD_RATE = 400, 1e-2
_POSITIVE, _NEGATIVE = 0.5, 0.4
"""Minimum overlap of an anchor that shows an object, and maximum overlap of one that does not."""
_BOXES = 2.0
"""Weight of the loss of boxes beside that of scores."""
_SMALLEST = 0.7
"""Smallest part of a frame that training sees, as a fraction of its sides."""
_VISIBLE = 0.4
"""Fraction of an object's box that must be inside the part of a frame for the object to count."""
_MEAN, _STD = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def _schedule(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    """Return a learning rate that rises for a tenth of the steps, and then falls as a cosine."""
    rise = max(1, steps // 10)

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def _detection_loss(
    logits: Tensor, boxes: Tensor, anchors: Tensor, weights: Sequence[float], truth: Sequence[Tensor]
) -> Tensor:
    """Return cross-entropy of scores plus smooth L1 loss of boxes, divided by the number of anchors with an object.

    All anchors count alike, without hard negatives or focal weights: the public detector is good from the start, and
    its scores should stay probabilities, because queries report what scores above a threshold.

    Args:
        logits: scores of the class before the sigmoid, ``[N, A]``.
        boxes: ``[N, A, 4]``, relative to the anchors.
        anchors: ``[A, 4]``, x1 y1 x2 y2 in input pixels.
        weights: factors of (dx, dy, dw, dh).
        truth: boxes of each image's objects, ``[K, 4]`` in input pixels.
    """
    total, count = logits.new_zeros(()), 0
    for scores, deltas, objects in zip(logits, boxes, truth, strict=True):
        overlap, target = anchors.new_zeros(len(anchors)), torch.zeros(len(anchors), dtype=torch.int64)
        if len(objects):
            overlaps = box_iou(objects, anchors)
            overlap, target = overlaps.max(0)
            # Each object has its best anchor, however little they overlap.
            best = overlaps.argmax(1)
            overlap[best], target[best] = 1.0, torch.arange(len(objects))
        found = overlap >= _POSITIVE
        clear = found | (overlap < _NEGATIVE)
        total = total + F.binary_cross_entropy_with_logits(scores[clear], found[clear].float(), reduction="sum")
        if found.any():
            wanted, own = objects[target[found]], anchors[found]
            size, own_size = wanted[:, 2:] - wanted[:, :2], own[:, 2:] - own[:, :2]
            middle = (wanted[:, :2] + wanted[:, 2:] - own[:, :2] - own[:, 2:]) / 2 / own_size
            code = torch.cat([middle, (size.clamp(min=1.0) / own_size).log()], 1) * boxes.new_tensor(weights)
            total = total + _BOXES * F.smooth_l1_loss(deltas[found], code, reduction="sum")
            count += int(found.sum())
    return total / max(count, 1)


def augment(scene: Scene, rng: np.random.Generator) -> Scene:
    """Return a frame or a random part of it with its objects, perhaps mirrored, with other brightness and contrast."""
    height, width = scene.frame.shape[:2]
    # Half of the images are whole frames, which queries look at.
    part = rng.uniform(_SMALLEST, 1, 2) if rng.uniform() < 0.5 else np.ones(2)
    size = (part * [width, height]).astype(int)
    left, top = (int(each) for each in rng.uniform([0, 0], [width - size[0] + 1, height - size[1] + 1]))
    area = np.array([left, top, left + size[0], top + size[1]], np.float32)
    boxes = np.concatenate([np.maximum(scene.boxes[:, :2], area[:2]), np.minimum(scene.boxes[:, 2:], area[2:])], 1)
    inside = (boxes[:, 2:] - boxes[:, :2]).clip(0).prod(1)
    whole = (scene.boxes[:, 2:] - scene.boxes[:, :2]).prod(1)
    boxes = boxes[inside >= _VISIBLE * whole] - np.tile(area[:2], 2)
    frame = scene.frame[top : top + size[1], left : left + size[0]]
    if rng.uniform() < 0.5:
        frame = frame[:, ::-1]
        boxes[:, [0, 2]] = size[0] - boxes[:, [2, 0]]
    contrast, brightness = rng.uniform(0.8, 1.25), rng.uniform(-20, 20)
    return Scene(cv2.convertScaleAbs(np.ascontiguousarray(frame), alpha=contrast, beta=brightness), boxes)


def train_detector(model: SsdMobileNetV2, scenes: Sequence[Scene], seed: int, steps: int = _DETECTOR_STEPS) -> int:
    """Train all layers of a detector with one class on labelled frames, and return the number of images trained on.

    Frames without objects are every fourth image at most: most cameras see nothing for most of the time.

    Args:
        model: the detector; it is changed, and in eval mode afterwards.
        scenes: labelled frames.
        seed: seed of the order of the frames and of their augmentation.
        steps: number of batches.
    """
    rng = np.random.default_rng(seed)
    spec = model.input_defaults()
    decode, tensors = model.decode(spec.size)
    assert isinstance(decode, SsdDecode)
    anchors = torch.from_numpy(tensors[decode.anchors])
    full = [each for each in scenes if len(each.boxes)]
    empty = [each for each in scenes if not len(each.boxes)]
    optimizer = torch.optim.Adam(model.parameters(), _DETECTOR_RATE)
    schedule = _schedule(optimizer, steps)
    model.train()
    for _ in range(steps):
        inputs: list[NDArray[np.float32]] = []
        truth: list[Tensor] = []
        for number in range(_DETECTOR_BATCH):
            pool = empty if empty and number % 4 == 3 else full
            scene = augment(pool[rng.integers(len(pool))], rng)
            planes, place = preprocess(scene.frame, spec)
            height, width = place.source
            scale = np.array([spec.size[1] / width, spec.size[0] / height] * 2, np.float32)
            inputs.append(planes)
            truth.append(torch.from_numpy(scene.boxes * scale))
        images = torch.from_numpy(np.concatenate(inputs)).contiguous(memory_format=torch.channels_last)
        logits, boxes = model(images)
        loss = _detection_loss(logits[..., 1], boxes, anchors, decode.box_weights, truth)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        schedule.step()
    model.eval()
    return steps * _DETECTOR_BATCH


def detector_accuracy(model: SsdMobileNetV2, scenes: Sequence[Scene], batch: int = 8) -> float:
    """Return the AP@50 of what a detector with one class reports on labelled frames."""
    found: list[list[Detection]] = []
    for start in range(0, len(scenes), batch):
        seen = detect(model, [each.frame for each in scenes[start : start + batch]], _THRESHOLD)
        found += [
            [Detection((x1, y1, x2, y2), score, "0") for x1, y1, x2, y2, score in boxes.tolist()] for boxes in seen
        ]
    truth = [[Detection((x1, y1, x2, y2), 1.0, "0") for x1, y1, x2, y2 in each.boxes.tolist()] for each in scenes]
    return mean_average_precision(found, truth, by_count=False)


def load_windows(folder: Path, classes: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return the images in a folder's folders, ``[N, 3, H, W]`` uint8 RGB, and their class numbers ``[N]``."""
    images, labels = [], []
    for number, name in enumerate(classes):
        for path in sorted((folder / name).iterdir()):
            image = cv2.imread(str(path))
            assert image is not None
            images.append(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
            labels.append(number)
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels)


def _normalised(images: Tensor) -> Tensor:
    return ((images / 255 - _MEAN) / _STD).contiguous(memory_format=torch.channels_last)


def fit_head(model: nn.Module, images: Tensor, labels: Tensor, seed: int) -> None:
    """Fit the last layer of torchvision's ``mobilenet_v2`` to its features of some images; no other layer changes."""
    torch.manual_seed(seed)
    model.eval()
    head = model.get_submodule("classifier.1")
    with torch.no_grad():
        features = torch.cat(
            [model.get_submodule("features")(_normalised(part)).mean((2, 3)) for part in images.split(64)]
        )
    optimizer = torch.optim.AdamW(head.parameters(), _HEAD_RATE, weight_decay=0.01)
    schedule = _schedule(optimizer, _HEAD_STEPS)
    for _ in range(_HEAD_STEPS):
        rows = torch.randint(0, len(labels), (256,))
        loss = F.cross_entropy(head(features[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def train_classifier(
    model: nn.Module, images: Tensor, labels: Tensor, seed: int, steps: int = _CLASSIFIER_STEPS
) -> int:
    """Train all layers of a classifier, and return the number of images trained on.

    Args:
        model: the classifier; it is changed, and in eval mode afterwards.
        images: ``[N, 3, H, W]`` uint8 RGB.
        labels: class numbers, ``[N]``.
        seed: seed of the order of the images and of their augmentation.
        steps: number of batches.
    """
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), _CLASSIFIER_RATE, weight_decay=0.01)
    schedule = _schedule(optimizer, steps)
    model.train()
    for _ in range(steps):
        rows = torch.randint(0, len(labels), (_CLASSIFIER_BATCH,))
        batch = images[rows].float()
        flip = torch.rand(len(rows)) < 0.5
        batch[flip] = batch[flip].flip(-1)
        contrast, brightness = torch.empty(2, len(rows), 1, 1, 1).uniform_(-1, 1)
        batch = (batch * (1 + 0.2 * contrast) + 20 * brightness).clamp(0, 255)
        loss = F.cross_entropy(model(_normalised(batch)), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    return steps * _CLASSIFIER_BATCH


@torch.no_grad()
def classifier_accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the fraction of images that a classifier gives the right class."""
    model.eval()
    right = sum(
        int((model(_normalised(part)).argmax(1) == truth).sum())
        for part, truth in zip(images.split(64), labels.split(64), strict=True)
    )
    return right / len(images)
