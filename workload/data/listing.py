"""Lists of the images of a data set, which can be split and thinned cheaply before any pixel is read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from ...errors import DataError, UnjudgedError
from ...frames.preprocess import Geometry, resize
from ...frames.source import Source
from .images import Boxes, Images, made_of, pixel_key
from .pixels import Pixels
from .video import pictures as frames_of

__all__ = ["Listing"]

_CHUNK = 256
"""Maximum number of a data set's image files to decode ahead of their use."""
_GAP = 25
"""Number N such that one of N images of a data set is left out between two parts that are apart in time."""
_STRETCH = 50
"""Number of images in a stretch of frames that are split into parts stretch by stretch."""

_Key = tuple[tuple[Path | int, ...], Source | None, tuple[tuple[int, int], str, str, str]]
_IN_USE: dict[_Key, tuple[ref[Pixels], tuple[Geometry, ...]]] = {}
"""Images and the way in which they were resized -> their pixels, while a data set uses them, and their places in the
model's input. Twenty models that watch one feed would otherwise hold 20 times the feed's frames."""

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

    def limited(self, frames: int, labelled: int | None = None) -> Listing:
        """Return a listing of at most ``frames`` images that nobody labelled, or of ``labelled`` others (None: all)."""
        return self.thinned(frames if self.labels is None and self.boxes is None else labelled)

    def split(self) -> tuple[Listing, Listing, Listing]:
        """Split a data set into three fifths for training, one for choosing and one for confirming, always the same.

        With labels, the first of every five images of a class chooses and the third confirms. Without labels, the data
        set is cut in time: the first part trains, the next one chooses, the last one confirms, with gaps between them.
        Single frames of a video would not do: their neighbours, which are near copies, would be trained on.
        """
        if self.labels is None:
            first, second, third = self._blocks(3, 1, 1)
            return self.chosen(first), *self._judging(second, third)
        choose, confirm = self._every(5, 0), self._every(5, 2)
        train = sorted(set(range(len(self))) - set(choose) - set(confirm))
        return self.chosen(train), *self._judging(choose, confirm)

    def split_often(self) -> tuple[Listing, Listing, Listing]:
        """Split images without labels into the parts of :meth:`split`, stretch by stretch of about 50 images.

        Each stretch in time gives images to all parts, so that a scene that began late is trained on too. The parts of
        a stretch are apart in time, and so are stretches.
        """
        count = max(1, len(self) // _STRETCH)
        edges = [len(self) * index // count for index in range(count + 1)]
        parts: tuple[list[int], list[int], list[int]] = ([], [], [])
        for start, end in pairwise(edges):
            blocks = self.chosen(range(start, end))._blocks(3, 1, 1)
            gap = max(1, (end - start) // _GAP) if start else 0
            for part, block in zip(parts, (blocks[0][gap:], *blocks[1:]), strict=True):
                part += [start + row for row in block]
        return self.chosen(parts[0]), *self._judging(parts[1], parts[2])

    def halved(self) -> tuple[Listing, Listing]:
        """Split a data set into one half for choosing and one for confirming, always the same.

        With labels, the images of each class alternate. Without labels, the halves are apart in time, with a gap.
        """
        if self.labels is None:
            return self._judging(*self._blocks(1, 1))
        return self._judging(self._every(2, 0), self._every(2, 1))

    def _every(self, step: int, first: int) -> list[int]:
        """Return the numbers of every ``step``-th labelled image of each class, from the class's image ``first`` on."""
        members: dict[int, list[int]] = defaultdict(list)
        for row, label in enumerate(self.labels or ()):
            members[label].append(row)
        return sorted(row for rows in members.values() if len(rows) > 1 for row in rows[first::step])

    def _blocks(self, *parts: int) -> list[range]:
        """Split the numbers of all images into runs of lengths in the ratio ``parts``, with a gap before all but the
        first."""
        gap = max(1, len(self) // _GAP)
        edges = [len(self) * sum(parts[:count]) // sum(parts) for count in range(len(parts) + 1)]
        return [range(first + gap * (first > 0), end) for first, end in pairwise(edges)]

    def _judging(self, choose: Iterable[int], confirm: Iterable[int]) -> tuple[Listing, Listing]:
        """Return two listings of a data set, of the images that choose and those that confirm, given their numbers."""
        return (
            replace(self.chosen(choose), what=f"{self.what} (the part that chooses)"),
            replace(self.chosen(confirm), what=f"{self.what} (the part that confirms)"),
        )

    def read(self, spec: InputSpec) -> Images:
        """Read every image of the data set and resize it for a model.

        Data sets of the same images for inputs of the same size and colours have one copy of their pixels, as long as
        one of them is in use.

        Args:
            spec: input size and colour order of the model.

        Raises:
            UnjudgedError: there are fewer than two images.
            DataError: an image cannot be read, or a box lies outside its image.
        """
        if len(self) < 2:
            raise UnjudgedError(
                f"{self.what}: fewer than 2 images: {len(self)}; give more images or a longer recording"
            )
        images = self._read(spec)
        if len(images) < 2:
            raise UnjudgedError(f"{self.what}: {self.video} gives {len(images)} readable frames; at least 2 are needed")
        self._check_boxes(images.geometry)
        labels: Tensor | None = None if self.labels is None else torch.tensor(self.labels)
        return replace(images, labels=labels, boxes=self.boxes)

    def _read(self, spec: InputSpec) -> Images:
        """Return all images without labels; their pixels are those of another data set if it has the same.

        Raises:
            DataError: an image cannot be read.
        """
        key = (self.items, self.video, pixel_key(spec))
        for old in [each for each, (held, _) in _IN_USE.items() if held() is None]:
            del _IN_USE[old]
        if key in _IN_USE:
            held, places = _IN_USE[key]
            if (known := held()) is not None:
                return Images(known, places, spec)
        images = made_of(self.pictures(lambda image: resize(image, spec)), len(self), spec)
        _IN_USE[key] = ref(images.stored), images.geometry
        return images

    def pictures(self, change: Callable[[NDArray[np.uint8]], _T]) -> Iterator[_T]:
        """Read the images one after the other and yield what ``change`` makes of each, files in parallel threads.

        Args:
            change: function of an image, ``[H, W, 3]`` uint8 BGR.
        """
        if self.video is not None:
            numbers: Sequence[int] = [item for item in self.items if isinstance(item, int)]
            with closing(frames_of(self.video, numbers, self.what)) as found:
                yield from map(change, found)
            return

        def load(path: Path) -> _T:
            """Read one image file and change it."""
            image = cv2.imread(str(path), cv2.IMREAD_COLOR)
            if image is None:
                raise DataError(f"{self.what}: {path}: cannot be read as an image")
            return change(np.asarray(image, np.uint8))

        paths = [item for item in self.items if isinstance(item, Path)]
        with ThreadPoolExecutor() as pool:
            # Read in chunks: a bad image is reported soon, and few decoded images wait in memory.
            for start in range(0, len(paths), _CHUNK):
                yield from pool.map(load, paths[start : start + _CHUNK])

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
