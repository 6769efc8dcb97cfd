"""Strategies: which sharing to try next, given what came of the trials before.

A strategy is a generator. It yields a batch of trials, which do not depend on each other, and is sent a verdict on
each; what it decides depends on nothing else, so that a search can be repeated, resumed and compared.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Literal

from ...errors import InputError
from ..layers.problem import Problem
from ..layers.sharing import SharingMap
from ..training.trial import Outcome, Trial

__all__ = ["STRATEGIES", "Search", "SearchSettings", "Strategy", "Verdict", "strategy"]


@dataclass(frozen=True)
class Verdict:
    """What became of a trial."""

    trial: Trial
    outcome: Outcome
    """Without weights: what is decided next does not depend on them, and they would fill the memory."""
    accepted: bool
    """Whether anything new is shared now."""
    sharing: SharingMap
    """All that is shared now."""


@dataclass(frozen=True)
class SearchSettings:
    """What a user may choose of a search."""

    inside: bool = True
    """Whether layers of one model may share, too."""
    folds: int = 1
    """How often the default strategy then tries to leave models with half as many different blocks."""
    steps: int = 160
    """Batches of each model in a first training of the default strategy."""
    epochs: int = 10
    """Times through the data in a trial of the published heuristic."""
    batch: int | None = None
    """Images of each model in a step; None: as many as fit their size."""
    rate: float | None = None
    """Learning rate; None: the strategy's own."""
    start: Literal["donor", "first", "average"] | None = None
    """How shared weights start; None: the strategy's own way."""


Search = Generator[Sequence[Trial], Sequence[Verdict], None]
Strategy = Callable[[Problem, SearchSettings], Search]

STRATEGIES = {
    "together": "everything at once from a donor, then each query gets back what it cannot do without (the default)",
    "heaviest": "the paper's heuristic: one group after the other, heaviest first, half of it on failure",
    "earliest": "one group after the other, from the front of the models",
    "latest": "one group after the other, from the end of the models",
    "random": "one group after the other, in random order",
    "two-group": "two groups at a time, heaviest first",
    "one-model": "one more model at a time, with all it can share",
}


def strategy(name: str) -> Strategy:
    """A strategy by its name.

    Raises:
        InputError: there is none of that name.
    """
    if name not in STRATEGIES:
        raise InputError(f"--strategy: {name!r} is not allowed: one of {', '.join(STRATEGIES)}")
    if name == "together":
        from .together import together

        return together
    from .stepwise import stepwise

    return stepwise(name)
