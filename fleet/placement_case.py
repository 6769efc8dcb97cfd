"""Placement as numbers: queries with what they need, boxes with what they have, and what an assignment takes.

Weights that exactly the same queries use are one *part*. A box holds a part once, for all of its queries that use it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import fsum

import numpy as np
from numpy.typing import NDArray

__all__ = ["LEFT_OUT", "Assignment", "PlacedBox", "PlacedQuery", "PlacementCase", "make_case"]

Assignment = tuple[int, ...]
"""Index of the box of each query, in the order of the case's queries; :data:`LEFT_OUT` for a query on no box."""
LEFT_OUT = -1
"""Number that stands for no box in an assignment."""
_ROUNDING = 1e-9
"""Fraction of a box's speed by which a sum of loads may exceed it, because sums of floating point numbers round."""


@dataclass(frozen=True)
class PlacedBox:
    """Box as numbers."""

    name: str
    memory: int
    """Bytes of weights that the box may hold."""
    speed: float = 1.0
    """Load that the box can take."""
    most: int | None = None
    """Maximum number of queries; None for no limit."""

    def takes(self, memory: int, load: float, queries: int) -> bool:
        """Return whether queries that need so many bytes and such a load may be on the box together."""
        return (
            memory <= self.memory
            and load <= self.speed * (1 + _ROUNDING)
            and (self.most is None or queries <= self.most)
        )


@dataclass(frozen=True)
class PlacedQuery:
    """Query as numbers."""

    name: str
    load: float
    """Seconds per second that the query keeps a box of speed 1 busy."""
    boxes: frozenset[int]
    """Indices of the boxes that the query may be on."""
    weight: float = 1.0
    priority: int = 0


@dataclass(frozen=True)
class PlacementCase:
    """Queries, boxes, and the parts of weights that the queries use."""

    queries: tuple[PlacedQuery, ...]
    boxes: tuple[PlacedBox, ...]
    sizes: NDArray[np.int64]
    """Bytes of each part."""
    uses: NDArray[np.bool_] = field(repr=False)
    """Whether a query (row) uses a part (column)."""

    @cached_property
    def alone(self) -> tuple[int, ...]:
        """Bytes of each query's weights."""
        return tuple(int(size) for size in self.uses @ self.sizes)

    @cached_property
    def levels(self) -> tuple[int, ...]:
        """Priorities that queries have, the highest first."""
        return tuple(sorted({query.priority for query in self.queries}, reverse=True))

    def members(self, assignment: Assignment) -> list[list[int]]:
        """Return the indices of the queries on each box."""
        found: list[list[int]] = [[] for _ in self.boxes]
        for query, box in enumerate(assignment):
            if box != LEFT_OUT:
                found[box].append(query)
        return found

    def held(self, queries: Sequence[int]) -> int:
        """Return the bytes of a box that has some queries: every part once."""
        return int(self.sizes[self.uses[list(queries)].any(0)].sum()) if len(queries) else 0

    def load(self, queries: Sequence[int]) -> float:
        """Return the load of a box that has some queries."""
        return fsum(self.queries[query].load for query in queries)

    def memory(self, assignment: Assignment) -> int:
        """Return the bytes of all boxes."""
        return sum(self.held(queries) for queries in self.members(assignment))

    def allows(self, assignment: Assignment) -> bool:
        """Return whether every query is on a box that it may be on, and no box has more than it can take."""
        return all(
            self.boxes[box].takes(self.held(queries), self.load(queries), len(queries))
            and all(box in self.queries[query].boxes for query in queries)
            for box, queries in enumerate(self.members(assignment))
        )

    def score(self, assignment: Assignment) -> tuple[float, ...]:
        """Return what is made as small as possible: weights left out by priority, the highest first, then bytes.

        Tuples of two assignments are compared in order.
        """
        out = [query for query, box in zip(self.queries, assignment, strict=True) if box == LEFT_OUT]
        weights = (fsum(query.weight for query in out if query.priority == level) for level in self.levels)
        # Sums of weights in another order may differ in their last digits.
        return (*(round(weight, 9) for weight in weights), self.memory(assignment))


def make_case(
    queries: Sequence[PlacedQuery],
    boxes: Sequence[PlacedBox],
    weights: Sequence[Mapping[str, int]],
) -> PlacementCase:
    """Return a case in which weights that exactly the same queries use are one part.

    Args:
        queries: the queries.
        boxes: the boxes.
        weights: for each query: name of a tensor, or of another piece of memory -> its bytes.
    """
    users: dict[str, list[int]] = {}
    sizes: dict[str, int] = {}
    for index, used in enumerate(weights):
        for name, size in used.items():
            users.setdefault(name, []).append(index)
            sizes[name] = size
    parts: dict[tuple[int, ...], int] = {}
    for name, found in users.items():
        parts[tuple(found)] = parts.get(tuple(found), 0) + sizes[name]
    uses = np.zeros((len(queries), len(parts)), np.bool_)
    for column, members in enumerate(parts):
        uses[list(members), column] = True
    return PlacementCase(tuple(queries), tuple(boxes), np.array(list(parts.values()), np.int64), uses)
