"""The search: runs the trials that a strategy asks for, and keeps what holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Protocol

import torch

from ...errors import GemelError
from ..layers.problem import Problem
from ..layers.sharing import SharingMap
from ..strategies import Search, Verdict
from ..training.subjects import State
from ..training.trial import Outcome, Trial

__all__ = ["Executor", "Found", "Job", "Journal", "kept", "search"]


@dataclass(frozen=True)
class Job:
    """A trial with the weights of all models that it goes on from, and what they share already."""

    trial: Trial
    states: Mapping[str, State]
    shared: SharingMap


Executor = Callable[[Sequence[Job]], Sequence[Outcome] | None]
"""Runs jobs that do not depend on each other; None where time was up before the last of them began."""


class Journal(Protocol):
    """Keeps a search so that it can go on after a crash. Trials of a batch are kept together or not at all."""

    def recall(self, trials: Sequence[Trial]) -> Sequence[Outcome] | None:
        """What came of the next batch when it ran before; None where it did not."""
        ...

    def restore(self, found: Found) -> tuple[Mapping[str, State], Mapping[str, State]] | None:
        """Once, after trials were recalled: weights that were found, and those after the last trial that trained.

        Args:
            found: what recalled trials led to, without weights.
        """
        ...

    def record(self, verdicts: Sequence[Verdict], found: Found, last: Mapping[str, State]) -> None:
        """A batch is over; what is found, and the weights that the next one may go on from, must survive."""
        ...


@dataclass
class Found:
    """The state of a search."""

    states: dict[str, State]
    """Weights of all models: merged ones, and the original ones of the others."""
    sharing: SharingMap = field(default_factory=SharingMap)
    accuracies: dict[str, float] = field(default_factory=dict)
    """Of the queries whose models share."""
    samples: int = 0
    verdicts: list[Verdict] = field(default_factory=list)


@dataclass
class _Last:
    """Weights after the last trial that trained, and the models that reach their goals with them."""

    states: dict[str, State]
    accuracies: dict[str, float]
    met: frozenset[str]


def search(
    problem: Problem,
    strategy: Search,
    originals: Mapping[str, State],
    execute: Executor,
    journal: Journal,
    deadline: float = math.inf,
) -> Found:
    """Run a strategy to its end, or to the deadline.

    Args:
        problem: the models.
        strategy: the generator that decides.
        originals: weights of the unmerged models.
        execute: runs trials; it heeds the deadline too.
        journal: told of every trial.
        deadline: of ``time.monotonic``; no batch of trials begins after it, and one that it cuts off is forgotten.
            Recalling takes no time.

    Raises:
        GemelError: what was to be shared came back with different weights.
    """
    found = Found(dict(originals))
    last = _Last(dict(originals), {}, frozenset())
    verdicts: list[Verdict] | None = None
    while (trials := _ask(strategy, verdicts)) is not None:
        known = journal.recall(trials)
        outcomes = known
        if outcomes is None and monotonic() <= deadline:
            _restore(found, last, journal)
            outcomes = execute([_job(trial, found, last) for trial in trials])
        if outcomes is None:
            # A batch without all of its outcomes is as if it had not begun: the strategy decides on all of them.
            strategy.close()
            break
        verdicts, last = _settle(trials, outcomes, problem, found, last)
        if known is None:
            _prove(found)
            journal.record(verdicts, found, last.states)
    _restore(found, last, journal)
    return found


def _ask(strategy: Search, verdicts: Sequence[Verdict] | None) -> Sequence[Trial] | None:
    """The next batch; None after the last one."""
    try:
        return next(strategy) if verdicts is None else strategy.send(verdicts)
    except StopIteration:
        return None


def _job(trial: Trial, found: Found, last: _Last) -> Job:
    return Job(trial, found.states if trial.base == "committed" else last.states, found.sharing)


def _restore(found: Found, last: _Last, journal: Journal) -> None:
    if (restored := journal.restore(found)) is not None:
        found.states.update(restored[0])
        last.states.update(restored[1])


def _prove(found: Found) -> None:
    """What is reported as shared is one tensor: a mistake in a strategy must not be written as a saving."""
    for slot in found.sharing.slots:
        first, *others = (found.states[use.model][use.parameter] for use in slot)
        for use, other in zip(slot[1:], others, strict=True):
            if not torch.equal(first, other):
                raise GemelError(
                    f"{slot[0].model}: {slot[0].parameter} was to be shared with {use.model}: {use.parameter}, but"
                    " their weights differ: a mistake in the strategy; the last commit is whole"
                )


def _settle(
    trials: Sequence[Trial], outcomes: Sequence[Outcome], problem: Problem, found: Found, last: _Last
) -> tuple[list[Verdict], _Last]:
    """Verdicts on a batch, one after the other.

    Its trials do not know of each other: of several that would change the same models, only the first that holds is
    kept.
    """
    verdicts: list[Verdict] = []
    changed: frozenset[str] = frozenset()
    for trial, outcome in zip(trials, outcomes, strict=True):
        if trial.recipe is not None:
            last = _advance(trial, outcome, found, last)
        touched = trial.sharing.tied(trial.learners)
        verdict = (
            Verdict(trial, outcome, False, found.sharing)
            if touched & changed
            else _judge(trial, outcome, problem, found, last)
        )
        if verdict.accepted:
            changed |= touched
        # What was found has the weights that are kept; those of every trial would fill the memory.
        verdict = replace(verdict, outcome=replace(outcome, states={}))
        verdicts.append(verdict)
        found.verdicts.append(verdict)
        found.samples += outcome.samples
    return verdicts, last


def _advance(trial: Trial, outcome: Outcome, found: Found, last: _Last) -> _Last:
    base = last if trial.base == "last" else _Last(found.states, found.accuracies, frozenset(found.sharing.models))
    return _Last(
        {**base.states, **outcome.states},
        {**base.accuracies, **outcome.accuracies},
        (base.met - trial.learners) | outcome.met,
    )


def _judge(trial: Trial, outcome: Outcome, problem: Problem, found: Found, last: _Last) -> Verdict:
    """Commit what holds: models that reach their goals keep what they share with each other."""
    if trial.recipe is None:
        if outcome.met < trial.learners:
            return Verdict(trial, outcome, False, found.sharing)
        last = _advance(replace(trial, base="committed"), outcome, found, last)
    sharing = kept(trial.sharing, found.sharing, last.met)
    if sharing is None:
        return Verdict(trial, outcome, False, found.sharing)
    touched = frozenset(sharing.models) & last.met
    # The others go back to the weights that they had, and so to what they reached with them.
    queries = {query for name in touched for query in problem.queries.get(name, (name,))}
    accuracies = {query: value for query, value in last.accuracies.items() if query in queries}
    accepted = problem.saved(sharing) > problem.saved(found.sharing)
    if accepted or (trial.base == "last" and sharing == found.sharing and _better(accuracies, found.accuracies)):
        found.sharing = sharing
        found.states |= {name: last.states[name] for name in touched}
        found.accuracies |= accuracies
    return Verdict(trial, outcome, accepted, found.sharing)


def _better(accuracies: Mapping[str, float], than: Mapping[str, float]) -> bool:
    """Whether another round of training has brought queries, all of which reach their goals, further on average."""
    return sum(value / than[query] for query, value in accuracies.items()) > len(accuracies)


def kept(wanted: SharingMap, committed: SharingMap, met: frozenset[str]) -> SharingMap | None:
    """What is shared when of all models in ``wanted`` only ``met`` keep their new weights.

    The others go back to the weights they had. Where these are shared with a model that keeps its new ones, that
    cannot be, and there is nothing to keep.
    """
    back = frozenset(wanted.models) - met
    if committed.tied(back) & met:
        return None
    return committed.joined(wanted.of(met).slots)
