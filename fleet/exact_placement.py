"""Exact placement with HiGHS, the mixed-integer solver of SciPy, which also proves how good an assignment is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..console import missing_extra
from .memory_bound import fewest_boxes
from .placement_case import LEFT_OUT, Assignment, PlacementCase

__all__ = ["Solved", "has_solver", "program_rows", "solve_placement"]

_OPTIMAL, _LIMIT, _INFEASIBLE = 0, 1, 2
"""Status numbers of ``scipy.optimize.milp``."""
_UNITS = 1e6
"""Number of units that all memory is divided into, because the solver's tolerances are absolute."""
_TOLERANCE = 1e-6
"""Difference below which two sums of weights are equal for the solver."""


@dataclass(frozen=True)
class Solved:
    """Result of the exact solver."""

    assignment: Assignment | None
    """Best assignment that was found; None if none was."""
    proven: bool
    """Whether the assignment is proven to be the best."""
    bound: int | None
    """Bytes that no assignment which leaves out as little can go below; None if nothing is known."""


def has_solver() -> bool:
    """Return whether SciPy is installed."""
    try:
        import scipy.optimize  # noqa: F401
    except ModuleNotFoundError:
        return False
    return True


def program_rows(case: PlacementCase) -> int:
    """Return the number of rows of the program that the solver would get, which says how large the case is."""
    shared = case.uses[:, case.uses.sum(0) > 1]
    return int(sum(shared[index].sum() * len(query.boxes) for index, query in enumerate(case.queries)))


def solve_placement(case: PlacementCase, known: Assignment, left: Callable[[], float]) -> Solved:
    """Return the best assignment, proven if the time is enough.

    Args:
        case: queries and boxes.
        known: an assignment that the case allows, which the result is to be as good as.
        left: function that returns the seconds that are left.

    Raises:
        MissingExtraError: SciPy is not installed.
    """
    program = _Program(case)
    if LEFT_OUT in known:
        # The priorities one after the other: what is reached for one is kept for the next.
        for level in case.levels:
            weights = {
                program.x[query, box]: -case.queries[query].weight
                for query, box in program.x
                if case.queries[query].priority == level
            }
            found = program.solve(weights, left())
            if found is None or found.status != _OPTIMAL:
                return Solved(None, False, None)
            program.add(weights, -np.inf, float(found.fun) + _TOLERANCE)
    else:
        for query in range(len(case.queries)):
            program.add({program.x[query, box]: 1.0 for box in case.queries[query].boxes}, 1.0, 1.0)
        program.add_fewest_boxes()
        program.add(program.bytes, -np.inf, case.memory(known) / program.unit * (1 + 1e-9))
    found = program.solve(program.bytes, left())
    if found is None:
        return Solved(None, False, None)
    bound = getattr(found, "mip_dual_bound", None)
    # The bound is a floating point number: a few bytes less are safe.
    least = (
        None if bound is None or not np.isfinite(bound) else max(0, int(np.floor(bound * program.unit * (1 - 1e-9))))
    )
    if found.x is None:
        return Solved(None, False, least)
    assignment = program.assignment(found.x)
    return Solved(assignment, found.status == _OPTIMAL and case.allows(assignment), least)


class _Program:
    """Integer program of a case: which query is on which box, and which shared part a box holds.

    Args:
        case: queries and boxes.
    """

    def __init__(self, case: PlacementCase) -> None:
        self._case = case
        self.unit = max(1.0, float(case.sizes.sum()) * len(case.boxes) / _UNITS)
        """Bytes of one unit of memory in the program."""
        self.x: dict[tuple[int, int], int] = {}
        """(query, box) -> column; columns of pairs that are equal to others by exchanging alike boxes are left out."""
        self._fixed: set[int] = set()
        self._rows: list[tuple[dict[int, float], float, float]] = []
        for index, query in enumerate(case.queries):
            for box in sorted(query.boxes):
                self.x[index, box] = len(self.x)
        self._fix_alike()
        users = case.uses.sum(0)
        own = [int(case.sizes[case.uses[query] & (users == 1)].sum()) for query in range(len(case.queries))]
        self._y: dict[tuple[int, int], int] = {}
        """(part, box) -> column, for parts that several queries use."""
        for part in map(int, np.flatnonzero(users > 1)):
            for box in sorted(set().union(*(case.queries[query].boxes for query in self._users(part)))):
                self._y[part, box] = len(self.x) + len(self._y)
        self.bytes = {column: own[query] / self.unit for (query, _), column in self.x.items() if own[query]}
        """Column -> units of memory."""
        self.bytes |= {column: float(case.sizes[part]) / self.unit for (part, _), column in self._y.items()}
        self._add_rows()

    def add(self, columns: dict[int, float], low: float, high: float) -> None:
        """Add a row: a sum of columns lies between two numbers."""
        self._rows.append((columns, low, high))

    def add_fewest_boxes(self) -> None:
        """Add that each part is on as many boxes as it must be, which holds if every query is placed."""
        least = fewest_boxes(self._case, range(len(self._case.queries)))
        for part in {part for part, _ in self._y}:
            columns = {column: 1.0 for (each, _), column in self._y.items() if each == part}
            self.add(columns, float(least[part]), np.inf)

    def solve(self, costs: dict[int, float], seconds: float) -> Any:
        """Return the solver's result; None if no time is left.

        Args:
            costs: column -> its cost; the sum is made as small as possible.
            seconds: time limit.
        """
        try:
            from scipy.optimize import Bounds, LinearConstraint, milp
            from scipy.sparse import coo_array
        except ModuleNotFoundError as error:
            raise missing_extra(error, "exact placement", "place") from error
        if seconds <= 0.05:
            return None
        total = len(self.x) + len(self._y)
        cost, upper, whole = np.zeros(total), np.ones(total), np.zeros(total)
        cost[list(costs)] = list(costs.values())
        upper[list(self._fixed)] = 0.0
        # Which parts a box holds follows from its queries.
        whole[: len(self.x)] = 1
        entries = [
            (row, column, value) for row, (columns, *_) in enumerate(self._rows) for column, value in columns.items()
        ]
        rows, columns, values = zip(*entries, strict=True)
        matrix = coo_array((values, (rows, columns)), shape=(len(self._rows), total)).tocsr()
        limits = LinearConstraint(matrix, [low for _, low, _ in self._rows], [high for *_, high in self._rows])
        return milp(
            cost,
            constraints=limits,
            bounds=Bounds(np.zeros(total), upper),
            integrality=whole,
            options={"time_limit": seconds, "mip_rel_gap": 0.0},
        )

    def assignment(self, values: Any) -> Assignment:
        """Return the assignment that the values of the columns stand for."""
        where = [LEFT_OUT] * len(self._case.queries)
        for (query, box), column in self.x.items():
            if values[column] > 0.5:
                where[query] = box
        return tuple(where)

    def _add_rows(self) -> None:
        """Add what every assignment keeps to: each query on one box at most, and no box with more than it can take."""
        case = self._case
        for query in range(len(case.queries)):
            self.add({column: 1.0 for (each, _), column in self.x.items() if each == query}, -np.inf, 1.0)
        for (part, box), column in self._y.items():
            for query in self._users(part):
                if (query, box) in self.x:
                    self.add({self.x[query, box]: 1.0, column: -1.0}, -np.inf, 0.0)
        for index, has in enumerate(case.boxes):
            here = {query: column for (query, each), column in self.x.items() if each == index}
            if not here:
                continue
            held = {column: self.bytes.get(column, 0.0) for column in here.values()}
            held |= {column: self.bytes[column] for (_, each), column in self._y.items() if each == index}
            self.add(held, -np.inf, has.memory / self.unit)
            self.add({column: case.queries[query].load for query, column in here.items()}, -np.inf, has.speed)
            if has.most is not None:
                self.add(dict.fromkeys(here.values(), 1.0), -np.inf, float(has.most))

    def _fix_alike(self) -> None:
        """Fix columns to 0 such that of assignments that differ by exchanging alike boxes, only one is left.

        Of boxes that are alike, the first one has the query with the smallest index, and so on. So the box with number
        ``k`` among them has none of the first ``k`` queries.
        """
        case = self._case
        alike: dict[tuple[Any, ...], list[int]] = {}
        for index, box in enumerate(case.boxes):
            visitors = tuple(query for query, each in enumerate(case.queries) if index in each.boxes)
            alike.setdefault((box.memory, box.speed, box.most, visitors), []).append(index)
        for (*_, visitors), boxes in alike.items():
            for number, index in enumerate(boxes):
                self._fixed |= {self.x[query, index] for query in visitors[:number]}

    def _users(self, part: int) -> list[int]:
        """Return the queries that use a part."""
        return [int(query) for query in np.flatnonzero(self._case.uses[:, part])]
