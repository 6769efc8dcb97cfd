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

__all__ = ["MOST_IN_MEMORY", "DiskPixels", "Pixels", "in_memory", "stored"]

MOST_IN_MEMORY = 256 << 20
"""Maximum bytes of pixels of one data set that stay in memory. More go to a temporary file, whose pages the operating
system keeps in memory while there is room."""


class DiskPixels:
    """Pixels of N images in temporary files, ``[N, C, H, W]`` uint8, indexed as a tensor is.

    The files lie in the folder for temporary files (environment variable ``TMPDIR``) and vanish with the last object
    that uses them.

    Args:
        files: open temporary files, in which one image follows the other.
        rows: file and number in the file of each image, ``[N, 2]`` int64.
        size: channels, height and width of an image.
    """

    def __init__(self, files: Sequence[IO[bytes]], rows: Tensor, size: tuple[int, int, int]) -> None:
        self._files, self._rows, self._size = tuple(files), rows, size

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Number of images, channels, height and width."""
        return (len(self), *self._size)

    def __getitem__(self, indices: Tensor) -> Tensor:
        """Read the images with the numbers ``indices`` (``[B]`` int64), ``[B, C, H, W]`` uint8."""
        found = torch.empty(len(indices), *self._size, dtype=torch.uint8)
        pictures = found.numpy()
        for picture, (file, row) in zip(pictures, self._rows[indices].tolist(), strict=True):
            if os.preadv(self._files[file].fileno(), [picture.reshape(-1)], row * picture.nbytes) != picture.nbytes:
                raise DataError("a temporary file of pixels was cut off; is the disk of TMPDIR full?")
        return found

    def select(self, indices: Tensor) -> DiskPixels:
        """Return the pixels of the images with the numbers ``indices``, still on disk."""
        return DiskPixels(self._files, self._rows[indices], self._size)

    def followed_by(self, other: DiskPixels) -> DiskPixels:
        """Return the pixels of these images and then those of ``other``, still on disk."""
        rows = torch.cat([self._rows, other._rows + torch.tensor([len(self._files), 0])])
        return DiskPixels((*self._files, *other._files), rows, self._size)

    def __reduce__(self) -> tuple[Any, ...]:
        # An open file cannot be sent to another process: the pixels themselves are.
        return torch.clone, (self[torch.arange(len(self))],)


Pixels = Tensor | DiskPixels
"""Pixels of N images, ``[N, C, H, W]`` uint8, in memory or on disk."""


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
    return DiskPixels((file,), torch.stack([torch.zeros(count, dtype=torch.int64), torch.arange(count)], 1), size)


def in_memory(pictures: Iterable[NDArray[np.uint8]], count: int, size: tuple[int, int, int]) -> Tensor:
    """Collect the pixels of at most ``count`` images in memory, ``[N, C, H, W]``; see :func:`stored`."""
    pixels, number = torch.zeros(count, *size, dtype=torch.uint8), 0
    for picture in pictures:
        pixels[number] = torch.from_numpy(picture)
        number += 1
    return pixels[:number]
