"""Data sets: images resized to a model's input, but not yet normalised, in memory or in temporary files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...bundles.manifest import InputSpec
from ...frames.preprocess import Geometry
from .pixels import MOST_IN_MEMORY, DiskPixels, Pixels, in_memory, stored

__all__ = ["Boxes", "Images", "Resized", "joined", "made_of"]

Resized = tuple[NDArray[np.uint8], Geometry]
"""Type of one image ``[h, w, C]``, resized for a model, with its position in the model's input."""


@dataclass(frozen=True)
class Boxes:
    """Ground-truth objects in one image: their boxes and classes."""

    boxes: Tensor
    """Boxes of K objects, ``[K, 4]`` float32, x1 y1 x2 y2 in pixels of the source image."""
    classes: Tensor
    """Class number of each object, ``[K]`` int64, the background not counted."""

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass(frozen=True)
class Images:
    """Data set of images, resized for a model. Without labels or boxes, the original model's answers are the truth."""

    pixels: Pixels
    """Pixels of all images of a data set, ``[N, C, height, width]`` uint8 in the colour order of the model's input."""
    geometry: tuple[Geometry, ...]
    """Size and place of each resized image within the model's input, which a letterbox leaves partly empty."""
    spec: InputSpec
    """Input size and normalisation of the model that a data set's images are resized for."""
    labels: Tensor | None = None
    """Class number of each image, ``[N]`` int64; None for a data set without classes."""
    boxes: tuple[Boxes, ...] | None = None
    """Ground-truth objects in each image; None for a data set without boxes."""

    def __len__(self) -> int:
        return len(self.pixels)

    def loaded(self) -> Tensor:
        """Return the pixels of all images in memory, ``[N, C, height, width]`` uint8."""
        return self.pixels[torch.arange(len(self))]

    def select(self, indices: Tensor) -> Images:
        """Return a data set of the images with the numbers ``indices`` (``[N]`` int64), in that order."""
        rows = indices.tolist()
        labels = None if self.labels is None else self.labels[indices]
        boxes = None if self.boxes is None else tuple(self.boxes[row] for row in rows)
        pixels = self.pixels.select(indices) if isinstance(self.pixels, DiskPixels) else self.pixels[indices]
        return Images(pixels, tuple(self.geometry[row] for row in rows), self.spec, labels, boxes)

    def batch(self, indices: Tensor, mirrored: bool = False) -> Tensor:
        """Return a batch of normalised images as the model's input.

        Args:
            indices: numbers of the images, ``[B]`` int64.
            mirrored: whether to flip images left to right, within the area of the input that the frame covers.

        Returns:
            ``[B, C, height, width]`` float32, bit for bit what :func:`gemel.frames.preprocess.preprocess` makes.
        """
        pixels = self.pixels[indices]
        if mirrored:
            for rows, (left, top, right, bottom) in self._covered(indices):
                pixels[rows, :, top:bottom, left:right] = pixels[rows, :, top:bottom, left:right].flip(-1)
        factor, offset = self._constants
        batch = pixels.to(torch.float32).mul_(factor).sub_(offset)
        if self.spec.fit != "stretch":
            for rows, (left, top, right, bottom) in self._covered(indices):
                image = batch[rows]  # a view: rows is a slice or a number
                image[..., :top, :] = image[..., bottom:, :] = self.spec.pad
                image[..., :left] = image[..., right:] = self.spec.pad
        return batch

    @cached_property
    def _constants(self) -> tuple[Tensor, Tensor]:
        """Factor and offset that normalise pixels (``pixel * factor - offset``), ``[C, 1, 1]`` each."""
        channels = self.pixels.shape[1]
        # A single number holds for all channels; a gray image takes the first of three numbers.
        mean, std = (np.resize(np.asarray(value, np.float32), channels) for value in (self.spec.mean, self.spec.std))
        factor, offset = (torch.from_numpy(value).view(-1, 1, 1) for value in (self.spec.scale / std, mean / std))
        return factor, offset

    @cached_property
    def _common(self) -> tuple[int, int, int, int] | None:
        """Area of the model's input that every image of a data set covers (x1 y1 x2 y2); None if images cover different
        areas."""
        found = {place.area for place in self.geometry}
        return found.pop() if len(found) == 1 else None

    def _covered(self, indices: Tensor) -> Iterator[tuple[int | slice, tuple[int, int, int, int]]]:
        """Yield positions in a batch of images, with the area (x1 y1 x2 y2) of the input that these images cover.

        If all images of the data set cover one area, as frames of one video do, all positions come at once.
        """
        if self._common is not None:
            yield slice(None), self._common
            return
        for row, index in enumerate(indices.tolist()):
            yield row, self.geometry[index].area


def made_of(resized: Iterable[Resized], count: int, spec: InputSpec) -> Images:
    """Collect resized images into a data set, in a temporary file if they would take more than 256 MiB of memory.

    Args:
        resized: the images, without labels.
        count: maximum number of images.
        spec: input size and colour order of the model that the images are resized for.
    """
    size = (1 if spec.color == "gray" else 3, *spec.size)
    places: list[Geometry] = []

    def pictures() -> Iterator[NDArray[np.uint8]]:
        """Yield the pixels of each image in its place within the model's input, and note the place."""
        for image, place in resized:
            rows, columns = place.covered
            picture = np.zeros(size, np.uint8)
            picture[:, rows, columns] = image.transpose(2, 0, 1)
            places.append(place)
            yield picture

    on_disk = count * size[0] * size[1] * size[2] > MOST_IN_MEMORY
    pixels = stored(pictures(), size) if on_disk else in_memory(pictures(), count, size)
    return Images(pixels, tuple(places), spec)


def joined(parts: Sequence[Images]) -> Images:
    """Concatenate data sets of images for one model. Labels and boxes are kept only if all data sets have them."""
    if len(parts) == 1:
        return parts[0]
    labels = [part.labels for part in parts if part.labels is not None]
    boxes = [part.boxes for part in parts if part.boxes is not None]
    return Images(
        _joined_pixels([part.pixels for part in parts]),
        tuple(place for part in parts for place in part.geometry),
        parts[0].spec,
        torch.cat(labels) if len(labels) == len(parts) else None,
        tuple(each for part in boxes for each in part) if len(boxes) == len(parts) else None,
    )


def _joined_pixels(parts: Sequence[Pixels]) -> Pixels:
    """Concatenate pixels; in temporary files if those of one part are in one."""
    tensors = [part for part in parts if isinstance(part, Tensor)]
    if len(tensors) == len(parts):
        return torch.cat(tensors)
    channels, height, width = parts[0].shape[1:]
    size = (channels, height, width)
    files = [part if isinstance(part, DiskPixels) else stored(part.numpy(), size) for part in parts]
    return reduce(DiskPixels.followed_by, files)
