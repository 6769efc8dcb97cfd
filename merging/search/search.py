"""Run the trials that a search strategy asks for, and commit the sharing with which queries reach their goals."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from time import monotonic
from typing import Protocol

from ..layers.problem import Problem
from ..layers.sharing import SharingMap
from ..strategies import Search, Verdict
from ..training.subjects import State
from ..training.trial import Outcome, Trial
from .found import Found, prove_shared
from .keeping import is_outdated, released, saves_less, skipped, useful_trials
from .settle import LastTrained, advance_weights, judge_trial, release_models

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


def search(
    problem: Problem,
    strategy: Search,
    originals: Mapping[str, State],
    execute: Executor,
    journal: Journal,
    deadline: float = math.inf,
    start: Found | None = None,
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
        start: what an earlier merge has committed; None to start from the original weights.

    Returns:
        The state of the search at its end.

    Raises:
        GemelError: weights that should be one shared tensor differ after a trial.
    """
    running = _Running(problem, originals, execute, journal, deadline, start or Found(dict(originals)))
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
        self,
        problem: Problem,
        originals: Mapping[str, State],
        execute: Executor,
        journal: Journal,
        deadline: float,
        start: Found,
    ) -> None:
        self._problem, self._execute, self._journal, self._deadline = problem, execute, journal, deadline
        self._originals, self._earlier = originals, dict(start.states)
        self.found = replace(start, states=dict(start.states), verdicts=[])
        self._last = LastTrained(dict(start.states), {}, frozenset(originals))

    def batch(self, trials: Sequence[Trial]) -> list[Verdict] | None:
        """Run the trials of a batch, and settle and record each as soon as its outcome is known.

        The trials are independent of each other. A trial that would change models that an earlier trial of the batch
        has changed is skipped (:func:`is_outdated`).

        Returns:
            A verdict on each trial; None if the deadline cut the batch off.
        """
        shared, changed = self.found.sharing, frozenset[str]()
        useful = useful_trials(trials, self._problem, shared, self.found.forms, self._last.waiting)
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
                if outcome is None and trial.release:
                    outcome = released(trial, self._problem)
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
                    prove_shared(self.found)
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
        earlier = {**self.found.states, **{name: self._earlier[name] for name in trial.learners}}
        states = {
            "committed": self.found.states,
            "last": self._last.states,
            "original": self._originals,
            "earlier": earlier,
        }
        return Job(trial, dict(states[trial.base]), shared)

    def _settle(self, trial: Trial, outcome: Outcome) -> Verdict:
        """Decide on a trial, commit the sharing that its outcome allows, and return the verdict without weights."""
        if trial.recipe is not None:
            self._last = advance_weights(trial, outcome, self.found, self._last)
        if trial.release:
            queries = {query for name in trial.learners for query in self._problem.queries.get(name, (name,))}
            verdict = release_models(trial, outcome, self._originals, self.found, queries)
        else:
            verdict = judge_trial(trial, outcome, self._problem, self.found, self._last)
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
