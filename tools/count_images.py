"""Count the images that go through models: in training, in looks at starts, for statistics and for evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["ImageCount", "count_images"]


@dataclass
class ImageCount:
    """Numbers of images that went through models so far; an image that goes through two models counts twice."""

    trained: int = 0
    """Images whose outputs had a gradient."""
    only_run: int = 0
    """Images that were run without a gradient: by teachers, for statistics and for evaluation."""

    @property
    def all(self) -> int:
        """Number of all images."""
        return self.trained + self.only_run


@contextmanager
def count_images(count: ImageCount | None = None) -> Iterator[ImageCount]:
    """Count the images of all calls of PyTorch modules in this process while the context is open.

    A call inside another module's call does not count again. The images of a call are the rows of its first tensor
    with four axes; calls without one (losses, heads) count as none.

    Args:
        count: numbers to go on from; a new count when left out.
    """
    count, depth = count or ImageCount(), 0

    def before(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        nonlocal depth
        depth += 1
        if depth > 1:
            return
        images = next((len(each) for each in inputs if isinstance(each, Tensor) and each.ndim == 4), 0)
        if torch.is_grad_enabled():
            count.trained += images
        else:
            count.only_run += images

    def after(module: nn.Module, inputs: tuple[Any, ...], outputs: Any) -> None:
        nonlocal depth
        depth -= 1

    hooks = [
        nn.modules.module.register_module_forward_pre_hook(before),
        # Also called after a failed call, so that the depth stays right.
        nn.modules.module.register_module_forward_hook(after, always_call=True),
    ]
    try:
        yield count
    finally:
        for hook in hooks:
            hook.remove()
