"""Objectives of plans, which decide which of several plans is better.

Each plan gets a row of numbers. The better of two plans has the larger row; the first number that differs decides.
The numbers come from the *share* of each query (fraction of the query's frames that are answered in time), or from the
*expected accuracy* of each query's answers. The last answer also stands for frames that are skipped after it, and is
less accurate the older it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...bundles.goals import OBJECTIVES, ObjectiveName
from .profile import Profile, QueryProfile

__all__ = ["OBJECTIVES", "STEP", "ObjectiveName", "Worth", "kept_accuracy"]

STEP = 1e-4
"""Difference below which two shares (fractions of frames answered in time) or two accuracies count as equal."""

_Array = NDArray[np.float64]


class Worth:
    """Comparison of plans of Q queries by an objective, by minimum rates, weights and priorities.

    Queries of the highest priority decide first. Among queries of equal priority, the plan is better that falls short
    of their minimum rates (``min_fps``) by less; if plans are equal in this, the objective decides. The objectives
    ``max-min`` and ``accuracy`` divide a query's share (fraction of frames answered in time) or accuracy by the query's
    weight. The objectives ``sum`` and ``mean-accuracy`` multiply by the weight.

    Args:
        profile: profile of the workload, with the weights, priorities and minimum rates of queries.
        queries: names of the Q queries, in the order of the columns that :meth:`rows` gets.
        objective: name of the objective.
    """

    def __init__(self, profile: Profile, queries: Sequence[str], objective: ObjectiveName) -> None:
        specs = [profile.queries[query] for query in queries]
        self.needs_accuracy = objective in ("accuracy", "mean-accuracy")
        """Whether the objective is about accuracy, so that :meth:`rows` needs expected accuracies."""
        self._lexicographic = objective in ("max-min", "accuracy")
        self._fps = np.array([spec.fps for spec in specs])
        self._weights = np.array([spec.weight for spec in specs])
        self._least = np.array([spec.min_fps for spec in specs])
        ranks = sorted({spec.priority for spec in specs}, reverse=True)
        self._groups = [np.array([spec.priority == rank for spec in specs]).nonzero()[0] for rank in ranks]
        """Columns of the queries of each priority, the highest priority first."""

    def rows(self, frames: _Array, accuracy: _Array | None, cycle_ms: _Array) -> _Array:
        """Return a row of K numbers for each of C plans, ``[C, K]``; the best plan has the largest row.

        Rows are compared number by number: the first number that differs decides.

        Args:
            frames: frames per second of each of Q queries that are answered in time, ``[C, Q]``.
            accuracy: expected accuracy of each of Q queries, 0 to 1, ``[C, Q]``; needed by objectives about accuracy.
            cycle_ms: milliseconds of a cycle, ``[C]``. Of plans that are equal otherwise, the shortest cycle wins.
        """
        values = accuracy if self.needs_accuracy and accuracy is not None else frames / self._fps
        columns: list[_Array] = []
        for group in self._groups:
            if self._least[group].any():
                columns.append(-np.round(self._missing(frames, group) / STEP))
            if self._lexicographic:
                columns.append(np.sort(np.round(values[:, group] / self._weights[group] / STEP), axis=1))
            else:
                scale = 1.0 if self.needs_accuracy else self._fps[group]
                total = (values[:, group] * scale * self._weights[group]).sum(1, keepdims=True)
                columns.append(np.round(total, 6))
        # Of plans that promise the same to the objective's step, the one with more frames wins, then the shorter cycle.
        columns.append(np.round((frames * self._weights).sum(1, keepdims=True), 3))
        columns.append(-np.round(cycle_ms[:, None], 6))
        return np.concatenate(columns, axis=1)

    def smooth(self, frames: _Array, accuracy: _Array | None) -> _Array:
        """Return K numbers for each of C plans, ``[C, K]``, which are larger if any query gets more.

        They grow most for the query that gets least. A search that looks only at the lowest share (fraction of frames
        answered in time) cannot tell which of two plans with the same lowest share leads to better plans. The negative
        sum of the inverse cubes of all shares can. As in :meth:`rows`, priorities and minimum rates decide first.

        Args:
            frames: frames per second of each of Q queries that are answered in time, ``[C, Q]``.
            accuracy: expected accuracy of each of Q queries, 0 to 1, ``[C, Q]``; replaces shares if the objective is
                about accuracy.
        """
        values = accuracy if self.needs_accuracy and accuracy is not None else frames / self._fps
        columns: list[_Array] = []
        for group in self._groups:
            if self._least[group].any():
                columns.append(-self._missing(frames, group))
            scaled = np.maximum(values[:, group] / self._weights[group], 1e-3)
            columns.append(-(scaled**-3.0).sum(1, keepdims=True))
        return np.concatenate(columns, axis=1)

    def _missing(self, frames: _Array, group: NDArray[np.intp]) -> _Array:
        """Return by how much each of C plans falls short of the minimum rates of some queries, ``[C, 1]``.

        The result is a sum over the queries. A query's summand is the missing rate divided by the frame rate of the
        query's feed.

        Args:
            frames: frames per second of each of Q queries that are answered in time, ``[C, Q]``.
            group: columns of the queries to add up.
        """
        missing: _Array = (np.maximum(self._least[group] - frames[:, group], 0) / self._fps[group]).sum(
            1, keepdims=True
        )
        return missing

    @property
    def is_steep(self) -> bool:
        """Whether the lowest share or accuracy of all queries decides, so that :meth:`smooth` helps a search."""
        return self._lexicographic

    @staticmethod
    def best(rows: _Array) -> int:
        """Return the index of the largest of C rows ``[C, K]``, compared number by number; of equal rows, the first."""
        left = np.arange(len(rows))
        for column in range(rows.shape[1]):
            if len(left) == 1:
                break
            values = rows[left, column]
            left = left[values == values.max()]
        return int(left[0])


def kept_accuracy(spec: QueryProfile, most: int) -> _Array:
    """Return the sum of the accuracies of a query's answers 1 to n frames old, for each n from 0 to ``most``.

    The query's staleness curve states the accuracy of an answer that stands for a frame 1, 2, ... frames later. Beyond
    the end of the curve, the last value of the curve holds.

    Args:
        spec: query with a staleness curve.
        most: maximum age of an answer in frames.

    Returns:
        Array ``[most + 1]``.
    """
    curve = np.asarray(spec.staleness, np.float64)
    ages = np.minimum(np.arange(most), len(curve) - 1)
    sums: _Array = np.concatenate([[0.0], np.cumsum(curve[ages])])
    return sums
