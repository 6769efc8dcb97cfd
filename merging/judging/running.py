"""Runs of a model over a data set in batches, whose raw outputs are turned into answers before the next batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...compiler.heads import as_tuple
from ...runtime.decode.evidence import Ratios
from ...workload.data import Images
from ..tasks import Answers, Outputs, Task
from .folding import folded

__all__ = [
    "answers_and_outputs",
    "answers_and_scores",
    "answers_on",
    "batch_size",
    "by_area",
    "fitting",
    "in_batches",
    "outputs_of",
    "put_channels_last",
    "ready",
]

_BATCH = 128
"""Number of images of 64 x 64 pixels in a batch; of larger images, as many pixels, but at least the number that is
asked for. Larger batches wait for memory: of a MobileNetV2 at 224 x 224, batches of 8 take half of the CPU's time of
batches of 71."""
_LEAST_BATCH = 8
"""Minimum number of images in a batch when a model is evaluated, unless they or their outputs take too much memory."""
_LARGE = 320
"""Side in pixels of images above which fewer than the minimum are in a batch: of eight images of 800 x 800, the first
layers of a RetinaNet alone take 2 GB."""
_WORTH_FOLDING = 32
"""Minimum number of images for which BatchNorms are folded: three more runs of one image find out whether they can be.
"""
_MOST_OUTPUTS = 256 << 20
"""Maximum bytes of the raw outputs of one batch; a detector with many anchors and classes gives 40 MB an image."""
_MOST_KEPT = 4 << 20
"""Maximum bytes of the raw outputs that are kept of a data set: those of 300 images, by 1,000 classes, fit."""


def fitting(count: int, images: Images) -> int:
    """Return how many images of a data set to use instead of ``count`` images of 64 x 64 pixels.

    If the longer side is above 64 pixels, the number is ``count * 64 / longer side``, because a larger image costs more
    and tells more. Otherwise the number is ``count``. It is never less than 8.
    """
    side = max(images.spec.size)
    return max(8, round(count * min(1.0, 64 / side)))


def by_area(count: int, images: Images, least: int) -> int:
    """Return how many images of a data set have as many pixels as ``count`` of 64 x 64: ``least`` to ``count``."""
    height, width = images.spec.size
    return max(least, round(count * min(1.0, 64 * 64 / (height * width))))


def batch_size(images: Images, least: int = _LEAST_BATCH) -> int:
    """Return how many images of a data set to run at once, without gradients: as many pixels as 128 of 64 x 64.

    Args:
        images: the data set.
        least: minimum for images of up to 320 x 320 pixels. Of larger ones it is as many pixels, but an eighth of it.
    """
    height, width = images.spec.size
    part = min(1.0, _LARGE * _LARGE / (height * width))
    return by_area(_BATCH, images, max(least // 8, round(least * part)))


def outputs_of(module: nn.Module, image: Tensor) -> Outputs:
    """Run a model's stage on a batch ``[B, C, H, W]`` and return the raw outputs as a tuple of float32 tensors."""
    return tuple(value.float() for value in as_tuple(module(image)))


@torch.no_grad()
def put_channels_last(module: nn.Module, image: Tensor) -> None:
    """Let a model's stage run with channels last in memory, in about half of the time on a CPU, if it can.

    A model that calls ``view`` on what a convolution gives cannot: it stays as it is.

    Args:
        module: the stage.
        image: input to try it on, ``[B, C, H, W]``.
    """
    handle = module.register_forward_pre_hook(_channels_last)
    try:
        module.to(memory_format=torch.channels_last)
        module(image)
    except RuntimeError:
        handle.remove()
        module.to(memory_format=torch.contiguous_format)


def _channels_last(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the inputs of a stage with channels last in memory; PyTorch calls this function before the stage."""
    return tuple(each.contiguous(memory_format=torch.channels_last) if each.ndim == 4 else each for each in inputs)


def in_batches(indices: Tensor, size: int) -> tuple[Tensor, ...]:
    """Split indices into batches of at most ``size``, all of nearly equal size.

    A last batch much smaller than the others would have poor BatchNorm statistics.
    """
    return indices.tensor_split(math.ceil(len(indices) / size))


def ready(module: nn.Module, images: Images, device: torch.device) -> nn.Module:
    """Return a model's stage with its BatchNorms folded, if it can be and the data set has enough images.

    Args:
        module: the stage, in eval mode.
        images: the largest data set that the stage is run over.
        device: device that the stage is on.
    """
    if len(images) < _WORTH_FOLDING:
        return module
    return folded(module, images.batch(torch.arange(1)).to(device))


@torch.inference_mode()
def answers_on(task: Task, module: nn.Module, images: Images, device: torch.device) -> Answers:
    """Run a model's stage on a whole data set and return its answers, one per image, in the form of the task.

    Args:
        task: the task that decodes outputs.
        module: the stage, in eval mode.
        images: the data set.
        device: device that the stage is on.
    """
    found: list[Any] = []
    for indices, outputs in _batches(module, images, device):
        found += _decoded(task, outputs, images, indices)
    return found


@torch.inference_mode()
def answers_and_outputs(
    task: Task, module: nn.Module, images: Images, device: torch.device
) -> tuple[Answers, Outputs | None]:
    """Run a model's stage on a whole data set; return its answers and, if they take at most 4 MiB, its raw outputs.

    Args:
        task: the task that decodes outputs.
        module: the stage, in eval mode.
        images: the data set.
        device: device that the stage is on, and that the raw outputs stay on, one row an image.
    """
    found: list[Any] = []
    kept: list[Outputs] = []
    size = 0
    for indices, outputs in _batches(module, images, device):
        found += _decoded(task, outputs, images, indices)
        size += sum(value.nbytes for value in outputs)
        if size <= _MOST_KEPT:
            kept.append(outputs)
    return found, tuple(map(torch.cat, zip(*kept, strict=True))) if size <= _MOST_KEPT else None


@torch.inference_mode()
def answers_and_scores(
    task: Task,
    module: nn.Module,
    teacher: Callable[[Tensor], Outputs],
    images: Images,
    device: torch.device,
    known: Outputs | None = None,
) -> tuple[Answers, Ratios]:
    """Run a model and its teacher on a whole data set; return the model's answers and its likeness to the teacher.

    Args:
        task: the task that decodes and compares outputs.
        module: the model's stage, in eval mode.
        teacher: the original model, from images on ``device`` to raw outputs.
        images: the data set.
        device: device that both models are on.
        known: raw outputs of the teacher for the images, so that it need not run.
    """
    found: list[Any] = []
    parts: list[Ratios] = []
    for indices, outputs in _batches(module, images, device):
        if known is None:
            wanted = teacher(images.batch(indices).to(device))
        else:
            wanted = tuple(value[indices.to(device)] for value in known)
        parts.append(task.likeness(outputs, wanted))
        found += _decoded(task, outputs, images, indices)
    return found, Ratios(np.concatenate([part.right for part in parts]), np.concatenate([part.total for part in parts]))


def _decoded(task: Task, outputs: Outputs, images: Images, indices: Tensor) -> Answers:
    """Return the answers to one batch of a data set, given its raw outputs."""
    places = [images.geometry[index] for index in indices.tolist()]
    return task.answers(tuple(value.cpu() for value in outputs), places)


def _batches(module: nn.Module, images: Images, device: torch.device) -> Iterator[tuple[Tensor, Outputs]]:
    """Yield (indices, raw outputs) of a data set, batch by batch. The first image runs alone and shows the size of
    outputs, so that no batch gives more than 256 MiB."""
    size, start = 1, 0
    while start < len(images):
        indices = torch.arange(start, min(start + size, len(images)))
        outputs = outputs_of(module, images.batch(indices).to(device))
        yield indices, outputs
        if not start:
            one = sum(value.nbytes for value in outputs)
            size = max(1, min(batch_size(images), _MOST_OUTPUTS // max(one, 1)))
        start += len(indices)
