"""Placement of queries on boxes: what fits on no box, the heuristic, the exact solver, and how good the result is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from time import monotonic

from .exact_placement import has_solver, program_rows, solve_placement
from .local_search import search_placement
from .memory_bound import memory_bound
from .placement_case import LEFT_OUT, Assignment, PlacementCase

__all__ = ["MOST_ROWS", "Placement", "fitting_boxes", "place_queries"]

MOST_ROWS = 3000
"""Number of rows of the integer program up to which a case is small: the exact solver gets most of the time."""
_HEURISTIC_SHARE = 0.3
"""Part of the time that the heuristic gets at most in a small case."""
_ROUNDS = 30
"""Number of disturbances for each query, in a row without a better assignment, after which the heuristic ends."""
_SMALL_ROUNDS = 100
"""The same in all, if the exact solver comes after the heuristic in a small case."""


@dataclass(frozen=True)
class Placement:
    """Assignment of queries to boxes, and what is known of how good it is."""

    assignment: Assignment
    proven: bool
    """Whether no assignment is better."""
    bound: int | None
    """Bytes that no assignment which leaves out as little can go below; None if nothing is known."""
    seconds: float
    """Seconds that the search took."""
    small: bool
    """Whether the case was small enough for the exact solver."""

    def gap(self, memory: int) -> float | None:
        """Return by which part of its ``memory`` bytes the assignment may be worse than the best one; None if that is
        not known."""
        if self.proven or memory == 0:
            return 0.0
        return None if self.bound is None else max(0.0, (memory - self.bound) / memory)


def place_queries(case: PlacementCase, seconds: float = 10.0, *, exact: bool | None = None, seed: int = 0) -> Placement:
    """Place queries on boxes: as much weight as possible by priority, then with as few bytes as possible on all boxes.

    Args:
        case: queries and boxes.
        seconds: time after which the best assignment so far is returned.
        exact: whether to use the exact solver; if left out, it is used if it is installed and the case is small.
        seed: seed of the heuristic's random numbers.

    Raises:
        MissingExtraError: ``exact`` is True and the solver is not installed.
    """
    began = monotonic()

    def left(share: float = 1.0) -> float:
        return began + seconds * share - monotonic()

    # A query that fits on no box even alone is left out by every assignment, and tells nothing about the others.
    fitting = [fitting_boxes(case, query) for query in range(len(case.queries))]
    possible = [query for query, boxes in enumerate(fitting) if boxes]
    if not possible:
        return Placement((LEFT_OUT,) * len(case.queries), True, 0, monotonic() - began, True)
    queries = (replace(case.queries[index], boxes=fitting[index]) for index in possible)
    core = replace(case, queries=tuple(queries), uses=case.uses[possible])
    small = program_rows(core) <= MOST_ROWS
    solve = (small and has_solver()) if exact is None else exact
    least = memory_bound(core, range(len(possible)))
    share = _HEURISTIC_SHARE if solve else 1.0
    rounds = _SMALL_ROUNDS if solve and small else _ROUNDS * len(possible)
    found = search_placement(core, lambda: left(share) <= 0, bound=least, rounds=rounds, seed=seed)
    bound = least if LEFT_OUT not in found else None
    proven = bound is not None and core.memory(found) <= bound
    if solve and not proven:
        solved = solve_placement(core, found, left)
        if solved.assignment is not None and core.allows(solved.assignment):
            found, proven = min(found, solved.assignment, key=core.score), solved.proven
        bound = max((each for each in (bound, solved.bound) if each is not None), default=None)
    if proven:
        bound = core.memory(found)
    where = dict(zip(possible, found, strict=True))
    assignment = tuple(where.get(index, LEFT_OUT) for index in range(len(case.queries)))
    return Placement(assignment, proven, bound, monotonic() - began, small)


def fitting_boxes(case: PlacementCase, query: int) -> frozenset[int]:
    """Return the boxes that a query may be on and fits on alone."""
    load = case.queries[query].load
    return frozenset(box for box in case.queries[query].boxes if case.boxes[box].takes(case.alone[query], load, 1))
