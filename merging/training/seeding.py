"""Random numbers of PyTorch that start anew for each trial."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from .subjects import Subject

__all__ = ["seeded"]


@contextmanager
def seeded(seed: int, subjects: Iterable[Subject]) -> Iterator[None]:
    """Seed PyTorch's random numbers for a ``with`` block and restore the caller's generators after the block.

    So dropout draws the same numbers in the block, whatever ran before.
    """
    devices = {subject.device for subject in subjects if subject.device.type == "cuda"}
    with torch.random.fork_rng(devices, device_type="cuda"):
        torch.manual_seed(seed)
        yield
