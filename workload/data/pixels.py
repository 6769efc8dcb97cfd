"""Pixels of many images in a temporary file, read when they are asked for, so that no data set has to fit in memory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...errors import DataError

__all__ = ["MOST_IN_MEMORY", "DiskPixels", "JoinedPixels", "Pixels", "in_memory", "stored"]

MOST_IN_MEMORY = 256 << 20
"""Maximum bytes of pixels of one data set that stay in memory. More go to a temporary file, whose pages the operating
system keeps in memory while there is room."""


class DiskPixels:
    """Pixels of N images in a temporary file, ``[N, C, H, W]`` uint8, indexed as a tensor is.

    The file lies in the folder for temporary files (environment variable ``TMPDIR``) and vanishes with the last object
    that uses it.

    Args:
        file: open temporary file, in which one image follows the other.
        count: number of images.
        size: channels, height and width of an image.
    """

    def __init__(self, file: IO[bytes], count: int, size: tuple[int, int, int]) -> None:
        self._file, self._count, self._size = file, count, size

    def __len__(self) -> int:
        return self._count

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Number of images, channels, height and width."""
        return (len(self), *self._size)

    def __getitem__(self, indices: Tensor) -> Tensor:
        """Read the images with the numbers ``indices`` (``[B]`` int64), ``[B, C, H, W]`` uint8."""
        found = torch.empty(len(indices), *self._size, dtype=torch.uint8)
        pictures = found.numpy()
        for picture, row in zip(pictures, indices.tolist(), strict=True):
            if os.preadv(self._file.fileno(), [picture.reshape(-1)], row * picture.nbytes) != picture.nbytes:
                raise DataError("a temporary file of pixels was cut off; is the disk of TMPDIR full?")
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        # An open file cannot be sent to another process: the pixels themselves are.
        return torch.clone, (self[torch.arange(len(self))],)


class JoinedPixels:
    """Pixels of several data sets one after the other, ``[N, C, H, W]`` uint8, indexed as a tensor is.

    None of them is copied: models that train on one feed, each with other images besides, hold the feed's frames once.

    Args:
        parts: the pixels of each data set, all of one size.
    """

    def __init__(self, parts: Sequence[Pixels]) -> None:
        self._parts = tuple(parts)
        self._ends = torch.tensor([len(part) for part in parts]).cumsum(0)

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Number of images, channels, height and width."""
        _, channels, height, width = self._parts[0].shape
        return len(self), channels, height, width

    def __getitem__(self, indices: Tensor) -> Tensor:
        """Return the images with the numbers ``indices`` (``[B]`` int64), ``[B, C, H, W]`` uint8."""
        found = torch.empty(len(indices), *self.shape[1:], dtype=torch.uint8)
        of = torch.bucketize(indices, self._ends, right=True)
        for number, part in enumerate(self._parts):
            rows = (of == number).nonzero()[:, 0]
            if len(rows):
                found[rows] = part[indices[rows] - (self._ends[number] - len(part))]
        return found


Pixels = Tensor | DiskPixels | JoinedPixels
"""Pixels of N images, ``[N, C, H, W]`` uint8, in memory, on disk, or some of both."""


def stored(pictures: Iterable[NDArray[np.uint8]], size: tuple[int, int, int]) -> DiskPixels:
    """Write the pixels of images to a temporary file.

    Args:
        pictures: pixels of each image, ``[C, H, W]``.
        size: channels, height and width of an image.

    Raises:
        DataError: the temporary file cannot be written.
    """
    count = 0
    try:
        # The file is closed when the last DiskPixels that holds it is gone.
        file = tempfile.TemporaryFile(prefix="gemel-")  # noqa: SIM115
        for picture in pictures:
            file.write(picture.tobytes())
            count += 1
        file.flush()
    except OSError as error:
        folder = tempfile.gettempdir()
        raise DataError(f"{folder}: cannot hold pixels: {error.strerror}; set TMPDIR to a larger disk") from error
    return DiskPixels(file, count, size)


def in_memory(pictures: Iterable[NDArray[np.uint8]], count: int, size: tuple[int, int, int]) -> Tensor:
    """Collect the pixels of at most ``count`` images in memory, ``[N, C, H, W]``; see :func:`stored`."""
    pixels, number = torch.zeros(count, *size, dtype=torch.uint8), 0
    for picture in pictures:
        pixels[number] = torch.from_numpy(picture)
        number += 1
    return pixels[:number]
