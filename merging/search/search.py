"""Run the trials that a search strategy asks for, and commit the sharing with which queries reach their goals."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
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
from .keeping import is_outdated, kept, saves_less, skipped, useful_trials

__all__ = ["Executor", "Found", "Job", "Journal", "search"]


@dataclass(frozen=True)
class Job:
    """A trial with everything that is needed to run it."""

    trial: Trial
    states: Mapping[str, State]
    """Model name -> weights that the trial starts from, for all models."""
    shared: SharingMap
    """Sharing map that the weights in ``states``, from which the trial starts, already follow."""


Executor = Callable[[Sequence[Job]], Generator[Outcome, None, None]]
"""Function that runs independent jobs (trials with weights). It yields the outcomes in the order of the jobs, each as
soon as it is known. It ends early if the deadline cuts the next job off."""


class Journal(Protocol):
    """Record of a search, from which it can continue after a crash. A trial is kept whole or not at all."""

    def recall(self, trial: Trial) -> Outcome | None:
        """Return the recorded outcome of the next trial, or None if the trial has not run yet.

        Args:
            trial: the trial that the search asks for.
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

    def record(self, verdict: Verdict, found: Found, last: Mapping[str, State]) -> None:
        """Record a trial so that it survives a crash.

        Args:
            verdict: verdict on the trial.
            found: state of the search after the trial.
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
    """Verdicts on all trials, in order, without weights."""
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
        journal: record of every trial; trials that the journal recalls are not run again.
        deadline: time of ``time.monotonic`` after which no trial begins. A trial that the deadline cuts off is
            discarded; earlier trials of its batch are kept. Recalled trials are settled even after the deadline.

    Returns:
        The state of the search at its end.

    Raises:
        GemelError: weights that should be one shared tensor differ after a trial.
    """
    running = _Running(problem, originals, execute, journal, deadline)
    verdicts: list[Verdict] | None = None
    while (trials := _ask(strategy, verdicts)) is not None:
        verdicts = running.batch(trials)
        if verdicts is None:
            # The strategy decides on whole batches only.
            strategy.close()
            break
    running.restore()
    return running.found


class _Running:
    """Search that is running: its state, and what it needs to run and settle trials."""

    def __init__(
        self, problem: Problem, originals: Mapping[str, State], execute: Executor, journal: Journal, deadline: float
    ) -> None:
        self._problem, self._execute, self._journal, self._deadline = problem, execute, journal, deadline
        self._originals, self.found = originals, Found(dict(originals))
        self._last = _Last(dict(originals), {}, frozenset(originals))

    def batch(self, trials: Sequence[Trial]) -> list[Verdict] | None:
        """Run the trials of a batch, and settle and record each as soon as its outcome is known.

        The trials are independent of each other. A trial that would change models that an earlier trial of the batch
        has changed is skipped (:func:`is_outdated`).

        Returns:
            A verdict on each trial; None if the deadline cut the batch off.
        """
        shared, changed = self.found.sharing, frozenset[str]()
        useful = useful_trials(trials, self._problem, shared, self.found.forms)
        verdicts: list[Verdict] = []
        running: Generator[Outcome, None, None] | None = None
        try:
            for index, trial in enumerate(trials):
                if is_outdated(trial, changed):
                    verdicts.append(Verdict(trial, skipped(), False, self.found.sharing, self.found.forms))
                    if running is not None:
                        running.close()
                        running = None
                    continue
                outcome = known = self._journal.recall(trial)
                if outcome is None and trial not in useful:
                    outcome = saves_less(trial, self._problem)
                if outcome is None:
                    if running is None:
                        if monotonic() > self._deadline:
                            return None
                        self.restore()
                        waiting = [each for each in trials[index:] if each in useful and not is_outdated(each, changed)]
                        running = self._execute([self._job(each, shared) for each in waiting])
                    outcome = next(running, None)
                if outcome is None:
                    return None
                verdict = self._settle(trial, outcome)
                if verdict.accepted:
                    changed |= trial.sharing.tied(trial.learners)
                verdicts.append(verdict)
                if known is None:
                    _prove(self.found)
                    self._journal.record(verdict, self.found, self._last.states)
        finally:
            if running is not None:
                running.close()
        return verdicts

    def restore(self) -> None:
        """Load the journal's weights into the state of the search, if the last recorded trial was just recalled."""
        if (restored := self._journal.restore(self.found)) is not None:
            self.found.states.update(restored[0])
            self._last.states.update(restored[1])

    def _job(self, trial: Trial, shared: SharingMap) -> Job:
        """Return the job for a trial, with the weights that the trial starts from.

        Args:
            trial: the trial.
            shared: sharing map at the beginning of the trial's batch; settled trials of the batch changed other models.
        """
        states = {"committed": self.found.states, "last": self._last.states, "original": self._originals}
        return Job(trial, dict(states[trial.base]), shared)

    def _settle(self, trial: Trial, outcome: Outcome) -> Verdict:
        """Decide on a trial, commit the sharing that its outcome allows, and return the verdict without weights."""
        if trial.recipe is not None:
            self._last = _advance(trial, outcome, self.found, self._last)
        verdict = _judge(trial, outcome, self._problem, self.found, self._last)
        # Committed weights are in ``found``; the weights of every trial would fill the memory.
        verdict = replace(verdict, outcome=replace(outcome, states={}, codes={}), forms=self.found.forms)
        self.found.verdicts.append(verdict)
        self.found.samples += outcome.samples
        return verdict


def _ask(strategy: Search, verdicts: Sequence[Verdict] | None) -> Sequence[Trial] | None:
    """Send verdicts to a search strategy and return its next batch of trials, or None after the last batch."""
    try:
        return next(strategy) if verdicts is None else strategy.send(verdicts)
    except StopIteration:
        return None


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


def _advance(trial: Trial, outcome: Outcome, found: Found, last: _Last) -> _Last:
    """Return all models' weights after a trial: new for the models that it retrained, else those it started from."""
    # Committed weights reach their goals, and so do the original weights of models that share nothing.
    base = last if trial.base == "last" else _Last(found.states, found.accuracies, frozenset(found.states))
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
