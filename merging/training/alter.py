"""Altered training images: a model that learns from its original can learn from images that nobody took."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["shifted"]

_FARTHEST = 8
"""Divisor of the side of an image that gives how far it is shifted at most."""


def shifted(image: Tensor, generator: torch.Generator) -> Tensor:
    """Return images that are shifted at random, each by up to an eighth of its side; the border is mirrored.

    This is the usual augmentation of small images (He et al., 2015: a random crop of the padded image).

    Args:
        image: normalised images, ``[B, C, H, W]``.
        generator: generator of the random numbers.
    """
    height, width = image.shape[2:]
    rows, columns = height // _FARTHEST, width // _FARTHEST
    padded = F.pad(image, (columns, columns, rows, rows), mode="reflect")
    top = torch.randint(2 * rows + 1, (len(image),), generator=generator).tolist()
    left = torch.randint(2 * columns + 1, (len(image),), generator=generator).tolist()
    parts = [each[:, y : y + height, x : x + width] for each, y, x in zip(padded, top, left, strict=True)]
    return torch.stack(parts)
