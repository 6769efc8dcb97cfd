"""What a data set consists of, before any pixel is read: so that it can be split and thinned cheaply."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

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
"""Of pixels, which stay in memory while models train."""
_CHUNK = 256
_VAL_SHARE = 5

Resized = tuple[NDArray[np.uint8], Geometry]
_T = TypeVar("_T")


@dataclass(frozen=True)
class Listing:
    """Images by file, or by their number in a video."""

    what: str
    """Query and field, for errors."""
    items: tuple[Path | int, ...]
    video: Source | None = None
    labels: tuple[int, ...] | None = None
    boxes: tuple[Boxes, ...] | None = None
    sizes: tuple[tuple[int, int] | None, ...] | None = None
    """Height and width of each image that its boxes were drawn in, where that is known."""

    def __len__(self) -> int:
        return len(self.items)

    def chosen(self, rows: Iterable[int]) -> Listing:
        """The images ``rows``, in that order."""
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
        """At most ``limit`` images, evenly spread."""
        if limit is None or len(self) <= limit:
            return self
        if self.labels is not None:
            # Classes take turns already; strides could fall in step with them.
            return self.chosen(range(limit))
        return self.chosen(np.linspace(0, len(self) - 1, limit).round().astype(int).tolist())

    def split(self) -> tuple[Listing, Listing]:
        """A part to train on, and a fifth to judge by, always the same one.

        Of images with classes it is every fifth of each class. Of all others it is the last fifth of each of five
        stretches: neighbours in a video are near copies, and with one in each part a model would be judged on what it
        has seen; and what a camera sees comes and goes.
        """
        if self.labels is None:
            last = {row for part in _stretches(len(self)) for row in part[-max(2, len(part) // _VAL_SHARE) :]}
            return self._parted((row for row in range(len(self)) if row not in last), sorted(last))
        members: dict[int, list[int]] = defaultdict(list)
        for row, label in enumerate(self.labels):
            members[label].append(row)
        val = {row for rows in members.values() if len(rows) > 1 for row in rows[::_VAL_SHARE]}
        return self._parted((row for row in range(len(self)) if row not in val), sorted(val))

    def _parted(self, train: Iterable[int], val: Iterable[int]) -> tuple[Listing, Listing]:
        return self.chosen(train), replace(self.chosen(val), what=f"{self.what} (the part kept for val)")

    def read(self, spec: InputSpec) -> Images:
        """Read and resize every image.

        Raises:
            DataError: fewer than two images, one that cannot be read, more than fit in memory, or a box that lies
                outside its image.
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
        pixels = torch.zeros(len(self), channels, *spec.size, dtype=torch.uint8)
        geometry: list[Geometry] = []
        for image, place in self._of_video(spec) if self.video else self._of_files(spec):
            pixels[len(geometry), :, : place.valid[0], : place.valid[1]] = torch.from_numpy(image).permute(2, 0, 1)
            geometry.append(place)
        if len(geometry) < 2:
            raise DataError(f"{self.what}: {self.video} gives {len(geometry)} readable frames; at least 2 are needed")
        self._check_boxes(geometry)
        labels: Tensor | None = None if self.labels is None else torch.tensor(self.labels)
        return Images(pixels[: len(geometry)], tuple(geometry), spec, labels, self.boxes)

    def _of_files(self, spec: InputSpec) -> Iterator[Resized]:
        def load(path: Path) -> Resized:
            image = cv2.imread(str(path), cv2.IMREAD_COLOR)
            if image is None:
                raise DataError(f"{self.what}: {path}: cannot be read as an image")
            return resize(np.asarray(image, np.uint8), spec)

        paths = [item for item in self.items if isinstance(item, Path)]
        with ThreadPoolExecutor() as pool:
            # In parts: a bad image is told soon, and few decoded ones wait.
            for start in range(0, len(paths), _CHUNK):
                yield from pool.map(load, paths[start : start + _CHUNK])

    def _of_video(self, spec: InputSpec) -> Iterator[Resized]:
        assert self.video is not None
        numbers: Sequence[int] = [item for item in self.items if isinstance(item, int)]
        with closing(pictures(self.video, numbers, self.what)) as found:
            for frame in found:
                yield resize(frame, spec)

    def _check_boxes(self, geometry: Sequence[Geometry]) -> None:
        for path, objects, size, place in zip(
            self.items, self.boxes or (), self.sizes or (), geometry, strict=bool(self.boxes)
        ):
            height, width = place.source
            if size is not None and size != place.source:
                raise DataError(
                    f"{self.what}: {path} is {width} x {height} pixels; its boxes are for {size[1]} x {size[0]}"
                )
            # Tools round outwards, and some count from 1.
            low, high = torch.full((4,), -1.0), torch.tensor([width, height] * 2) + 1.0
            outside = ((objects.boxes < low) | (objects.boxes > high)).any(1)
            if outside.any():
                corners = [round(edge, 1) for edge in objects.boxes[outside][0].tolist()]
                raise DataError(
                    f"{self.what}: {path}: box {corners} (x1 y1 x2 y2) lies outside the image of {width} x {height}"
                )


def _picked(values: Sequence[_T], rows: Iterable[int]) -> tuple[_T, ...]:
    return tuple(values[row] for row in rows)


def _stretches(count: int) -> list[range]:
    """At most five parts of nearly one length, none shorter than ten."""
    parts = min(5, max(1, count // 10))
    edges = [count * part // parts for part in range(parts + 1)]
    return [range(first, end) for first, end in pairwise(edges)]
