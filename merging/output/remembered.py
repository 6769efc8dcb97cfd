"""What was made of a search's state, remembered for the next state, which mostly has the same weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from ..search.found import Found

__all__ = ["Remembered"]

_Made = TypeVar("_Made")


class Remembered(Generic[_Made]):
    """Last result of a function of a search's weights and forms, for as long as these are the same.

    A trial that changes nothing would otherwise take seconds: all weights are hashed to count a bundle's bytes.
    """

    def __init__(self) -> None:
        self._known: tuple[Found, _Made] | None = None

    def of(self, found: Found, make: Callable[[], _Made]) -> _Made:
        """Return what ``make`` returns, or returned for the state before if that had the same weights and forms.

        Args:
            found: state of the search. Its weights do not change; a trial that changes a model gives new ones.
            make: function that makes the result from the state.
        """
        if self._known is None or not _are_alike(found, self._known[0]):
            # The search goes on to change the dictionary.
            self._known = Found(dict(found.states), forms=found.forms), make()
        return self._known[1]


def _are_alike(found: Found, before: Found) -> bool:
    """Check whether two states of a search have the same weights, as objects, and equal forms."""
    return found.forms == before.forms and all(state is before.states[name] for name, state in found.states.items())
