"""Run the trials that a search strategy asks for, and commit the sharing with which queries reach their goals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Protocol

import torch

from ...errors import GemelError
from ..forms.form_map import NO_FORMS, FormMap, saved_bytes
from ..forms.quantize import Coded
from ..layers.problem import Problem
from ..layers.sharing import SharingMap, Use
from ..strategies import Search, Verdict
from ..training.subjects import State
from ..training.trial import Outcome, Trial
from .skipped import useful_trials, with_skipped

__all__ = ["Executor", "Found", "Job", "Journal", "kept", "search"]


@dataclass(frozen=True)
class Job:
    """A trial with everything that is needed to run it."""

    trial: Trial
    states: Mapping[str, State]
    """Model name -> weights that the trial starts from, for all models."""
    shared: SharingMap
    """Sharing map that the weights in ``states``, from which the trial starts, already follow."""


Executor = Callable[[Sequence[Job]], Sequence[Outcome] | None]
"""Function that runs independent jobs (trials with weights); returns outcomes, or None if the deadline cut them off."""


class Journal(Protocol):
    """Record of a search, from which it can continue after a crash. A batch of trials is kept whole or not at all."""

    def recall(self, trials: Sequence[Trial]) -> Sequence[Outcome] | None:
        """Return the recorded outcomes of the next batch of trials, or None if the batch has not run yet.

        Args:
            trials: the trials of the batch.
        """
        ...

    def restore(self, found: Found) -> tuple[Mapping[str, State], Mapping[str, State]] | None:
        """Return the weights that an interrupted search had recorded, once all of its recorded trials were repeated.

        None while recorded trials are left, and in a search that was not interrupted.

        Args:
            found: state of the search after the recorded trials, still with the original weights.

        Returns:
            Committed weights of the merged models, and weights after the last trial that trained, by model name.
        """
        ...

    def record(self, verdicts: Sequence[Verdict], found: Found, last: Mapping[str, State]) -> None:
        """Record a batch of trials so that it survives a crash.

        Args:
            verdicts: verdicts on the trials of the batch.
            found: state of the search after the batch.
            last: model name -> weights after the last trial that trained.
        """
        ...


@dataclass
class Found:
    """State of a search: committed weights, sharing and accuracies, and the verdicts so far."""

    states: dict[str, State]
    """Model name -> committed weights; the original weights for models that share nothing."""
    sharing: SharingMap = field(default_factory=SharingMap)
    """Sharing map that the search has committed so far."""
    accuracies: dict[str, float] = field(default_factory=dict)
    """Query name -> accuracy with the committed weights, for queries whose models share."""
    samples: int = 0
    """Number of images that models were trained on, summed over models, steps and trials."""
    verdicts: list[Verdict] = field(default_factory=list)
    """Verdicts on all trials, in the order of the search, without weights."""
    forms: FormMap = NO_FORMS
    """Forms of weights that the search has committed so far."""
    codes: dict[Use, Coded] = field(default_factory=dict)
    """Weight -> codes of its committed form. Codes of trials that a journal recalled are missing."""

    @property
    def models(self) -> frozenset[str]:
        """Names of the models whose weights are not those before the merge, because they share or have forms."""
        return self.sharing.models | self.forms.models


@dataclass
class _Last:
    """Weights after the last trial that trained, and the accuracies reached with them."""

    states: dict[str, State]
    accuracies: dict[str, float]
    met: frozenset[str]
    """Names of the models that reach their goals with the weights in ``states``."""


def search(
    problem: Problem,
    strategy: Search,
    originals: Mapping[str, State],
    execute: Executor,
    journal: Journal,
    deadline: float = math.inf,
) -> Found:
    """Run a search strategy to its end, or to the deadline.

    Args:
        problem: the layers of all models.
        strategy: generator that asks for trials.
        originals: model name -> weights of the unmerged model.
        execute: function that runs the jobs of a batch; it must stop at the deadline too.
        journal: record of every batch; batches that the journal recalls are not run again.
        deadline: time of ``time.monotonic`` after which no batch begins. A batch that the deadline cuts off is
            discarded. Recalled batches are settled even after the deadline.

    Returns:
        The state of the search at its end.

    Raises:
        GemelError: weights that should be one shared tensor differ after a trial.
    """
    found = Found(dict(originals))
    last = _Last(dict(originals), {}, frozenset())
    verdicts: list[Verdict] | None = None
    while (trials := _ask(strategy, verdicts)) is not None:
        known = journal.recall(trials)
        outcomes = known
        if outcomes is None and monotonic() <= deadline:
            _restore(found, last, journal)
            useful = useful_trials(trials, problem, found.sharing, found.forms)
            done = execute([_job(trial, found, last, originals) for trial in useful]) if useful else ()
            outcomes = with_skipped(trials, useful, done, problem)
        if outcomes is None:
            # Discard a batch without all of its outcomes: the strategy decides on the whole batch.
            strategy.close()
            break
        verdicts, last = _settle(trials, outcomes, problem, found, last)
        if known is None:
            _prove(found)
            journal.record(verdicts, found, last.states)
    _restore(found, last, journal)
    return found


def _ask(strategy: Search, verdicts: Sequence[Verdict] | None) -> Sequence[Trial] | None:
    """Send verdicts to a search strategy and return its next batch of trials, or None after the last batch."""
    try:
        return next(strategy) if verdicts is None else strategy.send(verdicts)
    except StopIteration:
        return None


def _job(trial: Trial, found: Found, last: _Last, originals: Mapping[str, State]) -> Job:
    """Return the job for a trial, with the weights that the trial starts from."""
    states = {"committed": found.states, "last": last.states, "original": originals}
    return Job(trial, states[trial.base], found.sharing)


def _restore(found: Found, last: _Last, journal: Journal) -> None:
    """Load the journal's weights into the state of the search, if the last recorded batch was just recalled."""
    if (restored := journal.restore(found)) is not None:
        found.states.update(restored[0])
        last.states.update(restored[1])


def _prove(found: Found) -> None:
    """Check that weights which count as shared are equal, so that a bug in a strategy is not reported as a saving.

    Raises:
        GemelError: two weights that count as shared differ.
    """
    for slot in found.sharing.slots:
        first, *others = (found.states[use.model][use.parameter] for use in slot)
        for use, other in zip(slot[1:], others, strict=True):
            if not torch.equal(first, other):
                raise GemelError(
                    f"{slot[0].model}: {slot[0].parameter} was to be shared with {use.model}: {use.parameter}, but"
                    " their weights differ; this is a bug in the strategy; the last commit is intact"
                )


def _settle(
    trials: Sequence[Trial], outcomes: Sequence[Outcome], problem: Problem, found: Found, last: _Last
) -> tuple[list[Verdict], _Last]:
    """Decide on the trials of a batch in order, and commit the sharing that their outcomes allow.

    The trials ran independently of each other. Of several trials that would change the same models, only the first one
    that is accepted is committed.

    Args:
        trials: the trials.
        outcomes: the outcome of each trial.
        problem: the layers and queries of all models.
        found: state of the search; commits change it in place.
        last: weights after the last trial that trained.

    Returns:
        A verdict on each trial, and the weights after the last trial of the batch that trained.
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
        # Committed weights are in ``found``; the weights of every trial would fill the memory.
        verdict = replace(verdict, outcome=replace(outcome, states={}, codes={}), forms=found.forms)
        verdicts.append(verdict)
        found.verdicts.append(verdict)
        found.samples += outcome.samples
    return verdicts, last


def _advance(trial: Trial, outcome: Outcome, found: Found, last: _Last) -> _Last:
    """Return all models' weights after a trial: new for the models that it retrained, else those it started from."""
    base = last if trial.base == "last" else _Last(found.states, found.accuracies, frozenset(found.sharing.models))
    return _Last(
        {**base.states, **outcome.states},
        {**base.accuracies, **outcome.accuracies},
        (base.met - trial.learners) | outcome.met,
    )


def _judge(trial: Trial, outcome: Outcome, problem: Problem, found: Found, last: _Last) -> Verdict:
    """Commit a trial's sharing between the models that reach their goals, if it saves more bytes; return the verdict.

    A further round of the same training with the same sharing is committed, too, if accuracies improve. A trial without
    training is committed as a whole or not at all. Models that get new weights lose the forms that they had.
    """
    if trial.measure:
        return Verdict(trial, outcome, False, found.sharing)
    if trial.recipe is None:
        if outcome.met < trial.learners:
            return Verdict(trial, outcome, False, found.sharing)
        last = _advance(replace(trial, base="committed"), outcome, found, last)
    sharing = kept(trial.sharing, found.sharing, last.met)
    if sharing is None:
        return Verdict(trial, outcome, False, found.sharing)
    touched = (frozenset(sharing.models) | trial.forms.models) & last.met
    forms = found.forms.without(touched).joined(trial.forms.of(touched))
    # Models that miss their goals go back to their earlier weights, and so to their earlier accuracies.
    queries = {query for name in touched for query in problem.queries.get(name, (name,))}
    accuracies = {query: value for query, value in last.accuracies.items() if query in queries}
    accepted = saved_bytes(problem, sharing, forms) > saved_bytes(problem, found.sharing, found.forms)
    if accepted or (trial.base == "last" and sharing == found.sharing and _better(accuracies, found.accuracies)):
        found.sharing, found.forms = sharing, forms
        codes = found.codes | {use: each for use, each in outcome.codes.items() if use.model in touched}
        found.codes = {use: each for use, each in codes.items() if use in forms.uses}
        found.states |= {name: last.states[name] for name in touched}
        found.accuracies |= accuracies
    return Verdict(trial, outcome, accepted, found.sharing)


def _better(accuracies: Mapping[str, float], than: Mapping[str, float]) -> bool:
    """Check whether the mean ratio of ``accuracies`` to the earlier accuracies ``than``, both by query, is above 1."""
    return sum(value / than[query] for query, value in accuracies.items()) > len(accuracies)


def kept(wanted: SharingMap, committed: SharingMap, met: frozenset[str]) -> SharingMap | None:
    """Return the sharing map that remains when only some models keep the new weights of a trial.

    The other models go back to their committed weights. Going back is impossible if a model that goes back shares
    committed weights, directly or through other models, with a model that keeps its new weights.

    Args:
        wanted: sharing map of the trial.
        committed: sharing map before the trial.
        met: names of the models that reach their goals and keep their new weights.

    Returns:
        The sharing map, or None if going back is impossible.
    """
    back = frozenset(wanted.models) - met
    if committed.tied(back) & met:
        return None
    return committed.joined(wanted.of(met).slots)
