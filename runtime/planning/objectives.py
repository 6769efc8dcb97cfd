"""Objectives of plans: what a plan promises each query, and which of several plans is better.

A plan is worth a row of numbers, of which the first that differs decides. Query by query, these come from the *share*
(fraction of the query's frames that are answered in time) or from the *expected accuracy* of the answers: the last
answer stands for frames that were skipped, and is worth less the older it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...bundles.goals import OBJECTIVES, ObjectiveName
from .profile import Profile, QueryProfile

__all__ = ["OBJECTIVES", "STEP", "ObjectiveName", "Worth", "kept_accuracy"]

STEP = 1e-4
"""Difference between two shares or accuracies below which they count as equal, so that the next number decides."""

_Array = NDArray[np.float64]


class Worth:
    """Comparison of plans of Q queries by an objective, by minimum rates, weights and priorities.

    Queries of the highest priority decide first. Among queries of equal priority, what is missing to their minimum
    rates (``min_fps``) decides first, then the objective. A weight divides a query's share or accuracy in ``max-min``
    and ``accuracy``, and multiplies it in ``sum`` and ``mean-accuracy``.

    Args:
        profile: profile whose queries have weights, priorities and minimum rates.
        queries: names of the Q queries, in the order of the columns that :meth:`rows` gets.
        objective: name of the objective.
    """

    def __init__(self, profile: Profile, queries: Sequence[str], objective: ObjectiveName) -> None:
        specs = [profile.queries[query] for query in queries]
        self.needs_accuracy = objective in ("accuracy", "mean-accuracy")
        """Whether :meth:`rows` needs expected accuracies."""
        self._lexicographic = objective in ("max-min", "accuracy")
        self._fps = np.array([spec.fps for spec in specs])
        self._weights = np.array([spec.weight for spec in specs])
        self._least = np.array([spec.min_fps for spec in specs])
        ranks = sorted({spec.priority for spec in specs}, reverse=True)
        self._groups = [np.array([spec.priority == rank for spec in specs]).nonzero()[0] for rank in ranks]
        """Columns of the queries of equal priority, the highest priority first."""

    def rows(self, frames: _Array, accuracy: _Array | None, cycle_ms: _Array) -> _Array:
        """Return a row of numbers for each of C plans, ``[C, K]``; the plan whose row is the largest is the best.

        Args:
            frames: frames per second of each query that are answered in time, ``[C, Q]``.
            accuracy: expected accuracy of each query, 0 to 1, ``[C, Q]``; needed by objectives about accuracy.
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
        """Return numbers for each of C plans, ``[C, K]``, that grow where any query gets more, the poorest most.

        A search for the best lowest share passes plans of which it cannot tell by the lowest share alone whether they
        lead on; the sum of the inverse cubes of all shares can. Priorities and minimum rates decide first here, too.
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
        """Return the sum of what queries of a group miss to their minimum rates, in parts of their frames, ``[C, 1]``.

        Args:
            frames: frames per second of each query, ``[C, Q]``.
            group: columns of the group.
        """
        missing: _Array = (np.maximum(self._least[group] - frames[:, group], 0) / self._fps[group]).sum(
            1, keepdims=True
        )
        return missing

    @property
    def is_steep(self) -> bool:
        """Whether the lowest value of a plan decides, so that :meth:`smooth` helps to find the best plan."""
        return self._lexicographic

    @staticmethod
    def best(rows: _Array) -> int:
        """Return the index of the largest row, compared number by number; of equal rows, the first."""
        left = np.arange(len(rows))
        for column in range(rows.shape[1]):
            if len(left) == 1:
                break
            values = rows[left, column]
            left = left[values == values.max()]
        return int(left[0])


def kept_accuracy(spec: QueryProfile, most: int) -> _Array:
    """Return the sum of the accuracies of answers that are 1 to n frames old, for n from 0 to ``most``.

    The query's staleness curve says how accurate an answer is that stands for a frame 1, 2, ... frames later. Beyond
    its end the last value holds.

    Args:
        spec: query with a staleness curve.
        most: largest age in frames.
    """
    curve = np.asarray(spec.staleness, np.float64)
    ages = np.minimum(np.arange(most), len(curve) - 1)
    sums: _Array = np.concatenate([[0.0], np.cumsum(curve[ages])])
    return sums
