"""Heuristic placement: fill boxes greedily, move and exchange queries while that helps, then disturb and repair.

The search looks at all moves and all exchanges of two queries at once, with matrix products over queries, boxes and
parts. Its best assignment only gets better, so it may be stopped at any time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .placement_case import LEFT_OUT, Assignment, PlacementCase

__all__ = ["fill_first_fit", "search_placement"]

_STARTS = 12
"""Number of greedy fillings, in different orders, of which the best is improved first."""
_WORSE = 1.01
"""Factor by which the memory may exceed the best one while the search goes on from an assignment."""
_PATIENCE = 400
"""Number of disturbances in a row without a better assignment after which the search starts from the best one again."""
_ROUNDING = 1e-9

Floats = NDArray[np.float64]


def search_placement(
    case: PlacementCase, over: Callable[[], bool], *, bound: int = 0, rounds: int = 1000, seed: int = 0
) -> Assignment:
    """Return the best assignment that was found.

    Args:
        case: queries and boxes.
        over: function that returns True when the search must end; called between steps. The first filling is made in
            any case.
        bound: bytes that no assignment of all queries can go below; the search ends when it has reached them.
        rounds: number of disturbances in a row without a better assignment after which the search ends.
        seed: seed of the random numbers.
    """
    rng = np.random.default_rng(seed)
    tables = _tables(case)
    state = _State(tables)
    best: Assignment | None = None
    for start in range(_STARTS):
        state.clear()
        state.fill(rng, noise=0.0 if start == 0 else 0.5)
        found = state.assignment()
        if best is None or case.score(found) < case.score(best):
            best = found
        if over():
            return best
    assert best is not None  # there is at least one filling
    state.assume(best)
    best_score, since = case.score(best), 0
    least = (*(0.0 for _ in case.levels), bound)
    while since <= rounds:
        while not over() and state.improve():
            pass
        found = state.assignment()
        score = case.score(found)
        # Sums of loads are kept step by step, and may have been rounded up to the limit.
        if score < best_score and case.allows(found):
            best, best_score, since = found, score, 0
        since += 1
        if over() or best_score <= least:
            break
        if score[:-1] > best_score[:-1] or score[-1] > best_score[-1] * _WORSE or since % _PATIENCE == 0:
            state.assume(best)
        state.disturb(rng)
        state.fill(rng, noise=0.3)
    return best


def fill_first_fit(case: PlacementCase) -> Assignment:
    """Return a placement that ignores sharing: the largest query first, on the first box that has room for all of it.

    Queries of higher priority and weight come first. Room is counted as if every query had its weights alone.
    """
    memory, load = [box.memory for box in case.boxes], [box.speed * (1 + _ROUNDING) for box in case.boxes]
    count = [len(case.queries) if box.most is None else box.most for box in case.boxes]
    where = [LEFT_OUT] * len(case.queries)
    order = sorted(
        range(len(where)), key=lambda q: (-case.queries[q].priority, -case.queries[q].weight, -case.alone[q])
    )
    for index in order:
        query, size = case.queries[index], case.alone[index]
        for box in sorted(query.boxes):
            if size <= memory[box] and query.load <= load[box] and count[box]:
                memory[box], load[box], count[box] = memory[box] - size, load[box] - query.load, count[box] - 1
                where[index] = box
                break
    return tuple(where)


@dataclass(frozen=True)
class _Tables:
    """Case as arrays. The last box, with room for everything, holds what is left out."""

    uses: Floats
    """Whether a query (row) uses a part (column)."""
    weighed: Floats
    """Bytes of a part (column) that a query (row) uses; 0 if it does not."""
    alone: Floats
    allowed: NDArray[np.bool_]
    """Whether a query (row) may be on a box (column)."""
    load: Floats
    value: Floats
    """What leaving a query out costs, in bytes: more than all memory, and more than all queries of lower priority."""
    memory: Floats
    speed: Floats
    most: Floats


def _tables(case: PlacementCase) -> _Tables:
    """Return a case as arrays."""
    queries, boxes = case.queries, case.boxes
    allowed = np.zeros((len(queries), len(boxes) + 1), np.bool_)
    allowed[:, -1] = True
    for index, query in enumerate(queries):
        allowed[index, list(query.boxes)] = True
    value = np.zeros(len(queries))
    below = 0.0
    for level in reversed(case.levels):
        members = [index for index, query in enumerate(queries) if query.priority == level]
        weights = np.array([queries[index].weight for index in members])
        value[members] = weights / weights.min() * (1 + below)
        below += float(value[members].sum())
    everything = float(case.sizes.sum()) * len(boxes) + 1
    endless = np.inf
    return _Tables(
        uses=case.uses.astype(np.float64),
        weighed=np.multiply(case.uses, case.sizes, dtype=np.float64),
        alone=np.array(case.alone, np.float64),
        allowed=allowed,
        load=np.array([query.load for query in queries]),
        value=value * everything,
        memory=np.array([*(box.memory for box in boxes), endless], np.float64),
        speed=np.array([*(box.speed * (1 + _ROUNDING) for box in boxes), endless]),
        most=np.array([*(endless if box.most is None else box.most for box in boxes), endless]),
    )


class _State:
    """Assignment that is changed step by step, with what each box holds.

    Args:
        tables: the case as arrays.
    """

    def __init__(self, tables: _Tables) -> None:
        self._case = tables
        self._out = len(tables.memory) - 1
        self.clear()

    def clear(self) -> None:
        """Take all queries off their boxes."""
        case = self._case
        self._where = np.full(len(case.load), self._out)
        self._count = np.zeros((len(case.memory), case.uses.shape[1]))
        """Number of queries on a box (row) that use a part (column). The last box counts as if it held nothing."""
        self._used, self._load, self._number = (np.zeros(len(case.memory)) for _ in range(3))

    def assume(self, assignment: Assignment) -> None:
        """Take over an assignment that the case allows."""
        self.clear()
        for query, box in enumerate(assignment):
            if box != LEFT_OUT:
                self._put(query, box)

    def assignment(self) -> Assignment:
        """Return the assignment."""
        return tuple(LEFT_OUT if box == self._out else int(box) for box in self._where)

    def fill(self, rng: np.random.Generator, noise: float) -> None:
        """Put queries that are left out on boxes, one by one, where each adds fewest bytes, as far as there is room.

        Args:
            rng: random numbers.
            noise: how far the order departs from that by value and size; 0 for no departure.
        """
        case = self._case
        waiting = np.flatnonzero(self._where == self._out)
        urgency = np.log(case.value[waiting]) * 4 + np.log(case.alone[waiting] + 1)
        order = waiting[np.argsort(-(urgency + noise * rng.standard_normal(len(waiting))), kind="stable")]
        for query in order:
            added = (self._count == 0) @ case.weighed[query]
            fits = (
                case.allowed[query]
                & (self._used + added <= case.memory)
                & (self._load + case.load[query] <= case.speed)
                & (self._number + 1 <= case.most)
            )
            fits[self._out] = False
            if not fits.any():
                continue
            # Among boxes where as much is added, the one with least room for other queries.
            room = np.where(np.isfinite(case.speed), case.speed - self._load, 0.0)
            candidates = np.flatnonzero(fits)
            self._put(query, int(min(candidates, key=lambda box: (added[box], room[box]))))

    def disturb(self, rng: np.random.Generator) -> None:
        """Take some queries off their boxes: those of a box or two, those that use a part, or any."""
        case, kind = self._case, rng.random()
        placed = np.flatnonzero(self._where != self._out)
        if not len(placed):
            return
        if kind < 0.4:
            boxes = rng.choice(np.unique(self._where[placed]), size=min(2, len(np.unique(self._where[placed]))))
            chosen = placed[np.isin(self._where[placed], boxes)]
        elif kind < 0.7:
            # Parts that several boxes hold are what may be saved.
            held = (self._count[:-1] > 0).sum(0)
            cost = (held - 1).clip(0) * case.weighed.max(0)
            if not cost.sum():
                return
            part = rng.choice(len(cost), p=cost / cost.sum())
            chosen = placed[case.uses[placed, part] > 0]
        else:
            chosen = rng.choice(placed, size=min(len(placed), int(rng.integers(2, 9))), replace=False)
        for query in chosen:
            self._take(int(query))

    def improve(self) -> bool:
        """Make the move, or else the exchange, that helps most; return False if none helps."""
        case, where = self._case, self._where
        absent = self._count == 0
        absent[self._out] = False
        added = case.weighed @ absent.T
        sole = self._count[where] == 1
        sole[where == self._out] = False
        freed = (case.weighed * sole).sum(1)
        out = where == self._out

        fits = case.allowed & (self._used + added <= case.memory)
        fits &= self._load + case.load[:, None] <= case.speed
        fits &= self._number + 1 <= case.most
        fits[:, self._out] = False
        fits[np.arange(len(where)), where] = False
        gain = np.where(fits, added - freed[:, None] - np.where(out, case.value, 0.0)[:, None], np.inf)
        query, box = map(int, np.unravel_index(int(gain.argmin()), gain.shape))
        if gain[query, box] < -0.5:
            self._take(query)
            self._put(query, box)
            return True
        pair = self._best_exchange(added, freed, sole)
        if pair is None:
            return False
        one, other = pair
        boxes = int(where[one]), int(where[other])
        self._take(one)
        self._take(other)
        for each, target in ((one, boxes[1]), (other, boxes[0])):
            if target != self._out:
                self._put(each, target)
        return True

    def _best_exchange(self, added: Floats, freed: Floats, sole: NDArray[np.bool_]) -> tuple[int, int] | None:
        """Return the two queries of different boxes whose exchange helps most; None if no exchange helps.

        Args:
            added: bytes that a query (row) adds to a box (column).
            freed: bytes that are freed when a query leaves its box.
            sole: whether a query (row) is the only one on its box that uses a part (column).
        """
        case, where = self._case, self._where
        # Row: the query that leaves; column: the one that takes its place, and brings back what only the first used.
        back = (case.weighed * sole) @ case.uses.T
        change = added[:, where].T + back - freed[:, None]
        here = where[:, None]
        fits = case.allowed[:, where].T & (self._used[here] + change <= case.memory[here])
        fits &= self._load[here] - case.load[:, None] + case.load[None, :] <= case.speed[here]
        fits &= fits.T & (here != where[None, :])
        out = where == self._out
        # A query that is left out for another one: the first costs its value, the second brings it.
        lost = np.where(out[None, :], case.value[:, None] - case.value[None, :], 0.0)
        gain = np.where(fits, change + change.T + lost + lost.T, np.inf)
        one, other = np.unravel_index(int(gain.argmin()), gain.shape)
        return (int(one), int(other)) if gain[one, other] < -0.5 else None

    def _put(self, query: int, box: int) -> None:
        case = self._case
        self._used[box] += case.weighed[query] @ (self._count[box] == 0)
        self._count[box] += case.uses[query]
        self._load[box] += case.load[query]
        self._number[box] += 1
        self._where[query] = box

    def _take(self, query: int) -> None:
        case, box = self._case, int(self._where[query])
        if box == self._out:
            return
        self._count[box] -= case.uses[query]
        self._used[box] -= case.weighed[query] @ (self._count[box] == 0)
        self._load[box] -= case.load[query]
        self._number[box] -= 1
        self._where[query] = self._out
