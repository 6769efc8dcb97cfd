"""Which query runs next.

A decision only: it looks at names and touches nothing. The planner, which also knows what is resident, is another
:class:`Schedule`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

__all__ = ["RoundRobin", "Schedule", "round_robin"]


class Schedule(Protocol):
    def next(self, ready: Sequence[str]) -> str:
        """The query to run now.

        Args:
            ready: queries that have a frame waiting, at least one, in the order of the workload.

        Returns:
            One of ``ready``.
        """
        ...


def round_robin(order: Sequence[str], last: str | None, ready: Sequence[str]) -> str:
    """The first ready query after ``last`` in the cycle ``order``.

    >>> round_robin(("a", "b", "c"), "b", ("a", "b"))
    'a'

    Raises:
        ValueError: no query of ``order`` is ready.
    """
    start = 0 if last is None else order.index(last) + 1
    waiting = set(ready)
    for name in (*order[start:], *order[:start]):
        if name in waiting:
            return name
    raise ValueError(f"none of {list(ready)} is in the order {list(order)}")


class RoundRobin:
    """Every query in turn; those without a frame are passed over."""

    def __init__(self, order: Sequence[str]) -> None:
        self._order = tuple(order)
        self._last: str | None = None

    def next(self, ready: Sequence[str]) -> str:
        self._last = round_robin(self._order, self._last, ready)
        return self._last
