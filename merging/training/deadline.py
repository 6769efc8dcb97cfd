"""Stop what runs models for long when the deadline has passed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from time import monotonic

from .subjects import Subject

__all__ = ["TimeUpError", "stopping"]


class TimeUpError(Exception):
    """Signal that the deadline passed before the starting weights of a trial were measured."""


@contextmanager
def stopping(subjects: Iterable[Subject], deadline: float) -> Iterator[None]:
    """Raise :class:`TimeUpError` in a ``with`` block when a model runs after the deadline.

    The check comes before each batch, so that a budget that is shorter than one look still holds.
    """

    def check(*_: object) -> None:
        """Raise :class:`TimeUpError` after the deadline; PyTorch calls this function before the model runs."""
        if monotonic() > deadline:
            raise TimeUpError

    hooks = [subject.student.register_forward_pre_hook(check) for subject in subjects]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
