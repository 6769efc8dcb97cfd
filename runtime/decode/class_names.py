"""Names and numbers of a query's classes, and the choice of classes that the query reports."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .activations import label
from .decoder import DecodeContext

__all__ = ["MOST_CLASSES", "ClassNames"]

MOST_CLASSES = 2**31
"""Limit of class numbers: a class number that is this high or higher shows that a model's output is damaged."""


class ClassNames:
    """Names and numbers of a model's classes, and the choice of classes that a query reports.

    A class has an index, counted from 0 without the background, and a number, counted as the model's own library does.

    Args:
        context: labels of the query, and the labels or numbers of the classes that it reports.
        first: number of the class with index 0.
    """

    def __init__(self, context: DecodeContext, first: int = 0) -> None:
        self._labels, self._first = context.labels, first
        self._wanted: NDArray[np.intp] | None = None
        if context.classes is not None:
            chosen = {index for name in context.classes for index in self._indices(name)}
            self._wanted = np.array(sorted(chosen), np.intp)

    def name(self, index: int) -> str:
        """Return the label of the class with an index, or the class's number as text if it has no label."""
        known = self._labels is not None and 0 <= index < len(self._labels)
        return label(self._labels, index) if known else str(self.number(index))

    def number(self, index: int) -> int:
        """Return the number, as the model's library counts, of the class with an index."""
        return index + self._first

    def wanted(self, classes: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Return, for each of the class indices ``[K]``, whether the query reports this class."""
        if self._wanted is None:
            return np.ones(len(classes), np.bool_)
        return np.isin(classes, self._wanted)

    def _indices(self, name: str) -> list[int]:
        """Return the indices of all classes with a label; if there are none, take the label for a class number."""
        found = [index for index, each in enumerate(self._labels or ()) if each == name]
        return found or ([int(name) - self._first] if name.isascii() and name.isdigit() else [])
