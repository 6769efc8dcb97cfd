"""Lists of the images of a data set, which can be split and thinned cheaply before any pixel is read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TypeVar
from weakref import ref

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...bundles.manifest import InputSpec
from ...errors import DataError
from ...frames.preprocess import Geometry, resize
from ...frames.source import Source
from .images import Boxes, Images
from .video import pictures

__all__ = ["Listing"]

_MOST_BYTES = 8 << 30
"""Maximum bytes of pixels of a data set; the pixels stay in memory while models train."""
_CHUNK = 256
"""Maximum number of a data set's image files to decode ahead of their use."""
_HELD_OUT = 5
"""Number N such that one of every N images of a data set is held out for evaluation."""

_Key = tuple[tuple[Path | int, ...], Source | None, tuple[int, int], str, str, str]
_IN_MEMORY: dict[_Key, tuple[ref[Tensor], tuple[Geometry, ...]]] = {}
"""Images and the way in which they were resized -> their pixels, while a data set uses them, and their places in the
model's input. Twenty models that watch one feed would otherwise hold 20 times the feed's frames."""

Resized = tuple[NDArray[np.uint8], Geometry]
"""Type of one image, resized for a model, with its position in the model's input."""
_T = TypeVar("_T")


@dataclass(frozen=True)
class Listing:
    """List of the images of a data set (files, or frames of a video) with their labels or boxes, but without pixels."""

    what: str
    """Name of the query and field that the data set is for, for errors."""
    items: tuple[Path | int, ...]
    """Files of a data set's images, or their frame numbers (from 0) in the data set's video, one per image."""
    video: Source | None = None
    labels: tuple[int, ...] | None = None
    """Class number of each image; None for a data set without classes."""
    boxes: tuple[Boxes, ...] | None = None
    """Ground-truth objects in each image; None for a data set without boxes."""
    sizes: tuple[tuple[int, int] | None, ...] | None = None
    """Height and width in pixels that each image of a data set had when its boxes were drawn; None if unknown."""

    def __len__(self) -> int:
        return len(self.items)

    def chosen(self, rows: Iterable[int]) -> Listing:
        """Return a listing of only those images of a data set that have the numbers ``rows``, in that order."""
        rows = list(rows)
        return Listing(
            self.what,
            _picked(self.items, rows),
            self.video,
            None if self.labels is None else _picked(self.labels, rows),
            None if self.boxes is None else _picked(self.boxes, rows),
            None if self.sizes is None else _picked(self.sizes, rows),
        )

    def thinned(self, limit: int | None) -> Listing:
        """Return a listing of at most ``limit`` of the data set's images, evenly spread; of all images when None."""
        if limit is None or len(self) <= limit:
            return self
        if self.labels is not None:
            # Classes are interleaved already, and an even stride could skip some of them.
            return self.chosen(range(limit))
        return self.chosen(np.linspace(0, len(self) - 1, limit).round().astype(int).tolist())

    def split(self) -> tuple[Listing, Listing]:
        """Split a data set into four fifths for training and one fifth held out for evaluation, always the same.

        With labels, every fifth image of each class is held out. Without labels, the data set is cut into five runs of
        consecutive images, and the last fifth of each is held out. Single frames of a video would not do: their
        neighbours, which are near copies, would be trained on. Several runs cover a scene that changes over time.
        """
        if self.labels is None:
            last = {row for part in _stretches(len(self)) for row in part[-max(2, len(part) // _HELD_OUT) :]}
            return self._parted((row for row in range(len(self)) if row not in last), sorted(last))
        members: dict[int, list[int]] = defaultdict(list)
        for row, label in enumerate(self.labels):
            members[label].append(row)
        val = {row for rows in members.values() if len(rows) > 1 for row in rows[::_HELD_OUT]}
        return self._parted((row for row in range(len(self)) if row not in val), sorted(val))

    def _parted(self, train: Iterable[int], val: Iterable[int]) -> tuple[Listing, Listing]:
        """Return two listings of a data set, of the images for training and of those held out, given the images'
        numbers."""
        return self.chosen(train), replace(self.chosen(val), what=f"{self.what} (the part kept for val)")

    def read(self, spec: InputSpec) -> Images:
        """Read every image of the data set and resize it for a model.

        Data sets of the same images for inputs of the same size and colours have their pixels in memory once, as long
        as one of them is in use.

        Args:
            spec: input size and colour order of the model.

        Raises:
            DataError: there are fewer than two images or more than 8 GiB of pixels, an image cannot be read, or a box
                lies outside its image.
        """
        if len(self) < 2:
            raise DataError(f"{self.what}: fewer than 2 images: {len(self)}")
        channels = 1 if spec.color == "gray" else 3
        size = len(self) * channels * spec.size[0] * spec.size[1]
        if size > _MOST_BYTES:
            raise DataError(
                f"{self.what}: {len(self)} images of {spec.size[0]} x {spec.size[1]} pixels need {size} bytes of"
                f" memory, more than {_MOST_BYTES}; use fewer images"
            )
        pixels, geometry = self._read(spec)
        self._check_boxes(geometry)
        labels: Tensor | None = None if self.labels is None else torch.tensor(self.labels)
        return Images(pixels, geometry, spec, labels, self.boxes)

    def _read(self, spec: InputSpec) -> tuple[Tensor, tuple[Geometry, ...]]:
        """Return the pixels of all images, ``[N, C, height, width]`` uint8, and their places in the model's input.

        Raises:
            DataError: an image cannot be read, or a video has fewer than two readable frames.
        """
        # Normalisation and padding are not in the pixels.
        key = (self.items, self.video, spec.size, spec.color, spec.fit, spec.rounding)
        for old in [each for each, (held, _) in _IN_MEMORY.items() if held() is None]:
            del _IN_MEMORY[old]
        if key in _IN_MEMORY:
            held, places = _IN_MEMORY[key]
            if (known := held()) is not None:
                return known, places
        channels = 1 if spec.color == "gray" else 3
        pixels = torch.zeros(len(self), channels, *spec.size, dtype=torch.uint8)
        geometry: list[Geometry] = []
        for image, place in self._of_video(spec) if self.video else self._of_files(spec):
            rows, columns = place.covered
            pixels[len(geometry), :, rows, columns] = torch.from_numpy(image).permute(2, 0, 1)
            geometry.append(place)
        if len(geometry) < 2:
            raise DataError(f"{self.what}: {self.video} gives {len(geometry)} readable frames; at least 2 are needed")
        pixels = pixels[: len(geometry)]
        _IN_MEMORY[key] = ref(pixels), tuple(geometry)
        return pixels, tuple(geometry)

    def _of_files(self, spec: InputSpec) -> Iterator[Resized]:
        """Read the data set's image files in parallel threads, and yield the images resized for a model, in order."""

        def load(path: Path) -> Resized:
            """Read one image file and resize it for a model."""
            image = cv2.imread(str(path), cv2.IMREAD_COLOR)
            if image is None:
                raise DataError(f"{self.what}: {path}: cannot be read as an image")
            return resize(np.asarray(image, np.uint8), spec)

        paths = [item for item in self.items if isinstance(item, Path)]
        with ThreadPoolExecutor() as pool:
            # Read in chunks: a bad image is reported soon, and few decoded images wait in memory.
            for start in range(0, len(paths), _CHUNK):
                yield from pool.map(load, paths[start : start + _CHUNK])

    def _of_video(self, spec: InputSpec) -> Iterator[Resized]:
        """Decode the data set's frames of a video, and yield the frames resized for a model, in order."""
        assert self.video is not None
        numbers: Sequence[int] = [item for item in self.items if isinstance(item, int)]
        with closing(pictures(self.video, numbers, self.what)) as found:
            for frame in found:
                yield resize(frame, spec)

    def _check_boxes(self, geometry: Sequence[Geometry]) -> None:
        """Check that the ground-truth boxes fit the images that were read.

        Raises:
            DataError: an image has another size than when its boxes were drawn, or a box lies outside its image.
        """
        for path, objects, size, place in zip(
            self.items, self.boxes or (), self.sizes or (), geometry, strict=bool(self.boxes)
        ):
            height, width = place.source
            if size is not None and size != place.source:
                raise DataError(
                    f"{self.what}: {path} is {width} x {height} pixels; its boxes are for {size[1]} x {size[0]}"
                )
            # Allow one pixel: labelling tools round outwards, and some count pixels from 1.
            low, high = torch.full((4,), -1.0), torch.tensor([width, height] * 2) + 1.0
            outside = ((objects.boxes < low) | (objects.boxes > high)).any(1)
            if outside.any():
                corners = [round(edge, 1) for edge in objects.boxes[outside][0].tolist()]
                raise DataError(
                    f"{self.what}: {path}: box {corners} (x1 y1 x2 y2) lies outside the image of {width} x {height}"
                )


def _picked(values: Sequence[_T], rows: Iterable[int]) -> tuple[_T, ...]:
    """Return the items of a sequence at the positions ``rows``, in that order."""
    return tuple(values[row] for row in rows)


def _stretches(count: int) -> list[range]:
    """Split the numbers of ``count`` images into five runs of nearly equal length, or into fewer runs if five would
    have under ten images each."""
    parts = min(5, max(1, count // 10))
    edges = [count * part // parts for part in range(parts + 1)]
    return [range(first, end) for first, end in pairwise(edges)]
