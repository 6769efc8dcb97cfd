"""Search strategies: each decides which sharing to try next, given the results of earlier trials.

A strategy is a generator. It yields a batch of independent trials and is sent a verdict on each trial. The strategy's
decisions depend on nothing but the verdicts, so that a search can be repeated, resumed, forecast and compared.

When a trial of a batch is accepted, later trials of the batch that would change the same models are skipped: their
outcomes have no accuracies, and ``ended`` is ``skipped``.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Literal, cast

from ...errors import InputError
from ..forms.form_map import NO_FORMS, FormMap
from ..layers.problem import Problem
from ..layers.sharing import SharingMap
from ..training.training import Supervision
from ..training.trial import Outcome, Trial

__all__ = ["STRATEGIES", "Search", "SearchSettings", "Strategy", "StrategyEntry", "Verdict", "strategy"]


@dataclass(frozen=True)
class Verdict:
    """Decision of the search on a trial: whether to commit the trial's sharing."""

    trial: Trial
    outcome: Outcome
    """Result of the trial without weights: no later decision needs the weights, and they would fill the memory."""
    accepted: bool
    """Whether the committed sharing saves more bytes after the trial than before."""
    sharing: SharingMap
    """Sharing map that is committed after the trial."""
    forms: FormMap = NO_FORMS
    """Forms of weights that are committed after the trial."""


@dataclass(frozen=True)
class SearchSettings:
    """Settings of a search that a user may change."""

    inside: bool = True
    """Whether layers inside one model may share with each other."""
    folds: int = 1
    """Number of times that the default strategy tries to halve the number of different blocks inside models, after
    everything is shared."""
    steps: int = 160
    """Number of batches of each model in the first training round of the default strategy."""
    epochs: int = 10
    """Number of epochs in a trial (one retraining of a candidate merge) of all strategies but the default strategy."""
    batch: int | None = None
    """Number of images of each model per training step; None for 64 images of 64 x 64 pixels, or fewer larger ones."""
    rate: float | None = None
    """Learning rate; None for the strategy's default rate."""
    start: Literal["donor", "first", "average"] | None = None
    """Starting weights of shared layers (:class:`.trial.Start`); None for the strategy's default."""
    supervision: Supervision | None = None
    """What models learn from; None for the strategy's default: the teacher, or labels in what was published."""
    differences: bool = True
    """Whether fine-tunes of one checkpoint may be kept as differences to a common base, before anything is trained."""
    compress: bool = False
    """Whether weights may be kept as codes of their own, after the search for sharing."""
    retrain: bool = True
    """Whether to search for sharing by retraining at all."""


Search = Generator[Sequence[Trial], Sequence[Verdict], None]
"""Generator that is a running strategy: it yields batches of trials and receives their verdicts."""
Strategy = Callable[[Problem, SearchSettings], Search]
"""Function that starts a search, called with the problem (layers, queries and targets) and the settings."""


@dataclass(frozen=True)
class StrategyEntry:
    """Entry of one strategy in the registry :data:`STRATEGIES`."""

    description: str
    """Line of text that says what the strategy tries."""
    function: str
    """Location of the :data:`Strategy` as ``module:function``; a leading dot stands for ``merging.strategies``."""


STRATEGIES = {
    "together": StrategyEntry(
        "share all layers at once from donor weights, then make single layers private where a query needs them"
        " (the default)",
        ".together:together",
    ),
    "heaviest": StrategyEntry(
        "the paper's heuristic: one group after the other, largest saving first, half of it on failure",
        ".stepwise:heaviest",
    ),
    "earliest": StrategyEntry(
        "one group after the other, from the input of the models to their output", ".stepwise:earliest"
    ),
    "latest": StrategyEntry(
        "one group after the other, from the output of the models to their input", ".stepwise:latest"
    ),
    "random": StrategyEntry("one group after the other, in random order", ".stepwise:shuffled"),
    "two-group": StrategyEntry("two groups at a time, largest saving first", ".stepwise:two_group"),
    "one-model": StrategyEntry("one more model at a time, with all layers that it can share", ".stepwise:one_model"),
}
"""Strategy name -> its entry. A new strategy needs one file in the package ``strategies`` and one entry here."""


def strategy(name: str) -> Strategy:
    """Return the search strategy with a name from :data:`STRATEGIES`.

    Raises:
        InputError: no strategy has that name.
    """
    if name not in STRATEGIES:
        raise InputError(f"--strategy: {name!r} is not allowed: one of {', '.join(STRATEGIES)}")
    module, function = STRATEGIES[name].function.split(":")
    return cast(Strategy, getattr(import_module(module, __package__), function))
