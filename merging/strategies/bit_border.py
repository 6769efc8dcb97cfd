"""Bisection between two numbers of bits: how many of a model's layers need the larger one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from ..forms.costs import LayerCost, uniform_forms
from ..forms.form_map import FormMap

__all__ = ["BitBorder"]


class BitBorder:
    """Bisection for the number of a model's layers that need more bits than the others.

    Args:
        costs: costs of the forms of the model's layers.
        fewer: bits with which not all queries reach their goals.
        more: bits with which they do.
    """

    def __init__(self, costs: Sequence[LayerCost], fewer: int, more: int) -> None:
        self.fewer, self.more = fewer, more
        self._ranked = sorted(costs, key=self._gain, reverse=True)
        self._sums = list(accumulate(cost.bytes(more) - cost.bytes(fewer) for cost in self._ranked))
        self._fails, self._holds = 0, len(costs)

    def _gain(self, cost: LayerCost) -> float:
        """Return by how much more bits lower the squared error of a layer, for each byte that they cost."""
        fall = cost.errors[self.fewer] ** 2 - cost.errors[self.more] ** 2
        return fall / (cost.bytes(self.more) - cost.bytes(self.fewer))

    @property
    def is_open(self) -> bool:
        """Whether there is a number of layers between one that fails and one that holds."""
        return self._holds - self._fails > 1

    @property
    def middle(self) -> int:
        """Number of layers to give more bits next: half of the bytes between one that fails and one that holds."""
        start = self._sums[self._fails - 1] if self._fails else 0
        half = (start + self._sums[self._holds - 1]) / 2
        inside = range(self._fails + 1, self._holds)
        return next((count for count in inside if self._sums[count - 1] >= half), inside[-1])

    def forms(self) -> FormMap:
        """Return the forms with more bits in the first :attr:`middle` layers."""
        rich, poor = self._ranked[: self.middle], self._ranked[self.middle :]
        return uniform_forms(poor, self.fewer).joined(uniform_forms(rich, self.more))

    def narrow(self, holds: bool) -> None:
        """Take the result of a measurement with :attr:`middle` layers."""
        if holds:
            self._holds = self.middle
        else:
            self._fails = self.middle
