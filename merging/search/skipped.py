"""Leave out trials that could save no more than what a search has committed, so that they cost no time."""

from __future__ import annotations

from collections.abc import Sequence

from ..forms.form_map import FormMap, saved_bytes
from ..layers.problem import Problem
from ..layers.sharing import SharingMap
from ..training.trial import Outcome, Trial

__all__ = ["useful_trials", "with_skipped"]


def useful_trials(trials: Sequence[Trial], problem: Problem, sharing: SharingMap, forms: FormMap) -> list[Trial]:
    """Return the trials of a batch that could save at least what is committed.

    A strategy knows nothing of forms. Where these save more than the strategy's sharing would, its trial is useless.

    Args:
        trials: the trials of a batch.
        problem: the layers of all models.
        sharing: sharing map that is committed so far.
        forms: forms that are committed so far.
    """
    if not forms.forms:
        return list(trials)
    saved = saved_bytes(problem, sharing, forms)

    def best(trial: Trial) -> int:
        """Return the bytes that are saved if all models of a trial reach their goals."""
        return saved_bytes(problem, sharing.joined(trial.sharing.slots), forms.without(trial.sharing.models))

    return [trial for trial in trials if trial.forms.forms or best(trial) >= saved]


def with_skipped(
    trials: Sequence[Trial], useful: Sequence[Trial], outcomes: Sequence[Outcome] | None, problem: Problem
) -> list[Outcome] | None:
    """Return the outcomes of a batch of trials: those of the useful trials, and failures of the others.

    Args:
        trials: the trials of the batch.
        useful: the trials that were run, in the same order.
        outcomes: their outcomes; None if the deadline cut them off.
        problem: the queries of all models.
    """
    if outcomes is None:
        return None
    done = dict(zip(map(id, useful), outcomes, strict=True))
    return [done.get(id(trial)) or _failure(trial, problem) for trial in trials]


def _failure(trial: Trial, problem: Problem) -> Outcome:
    """Return the outcome of a trial that was not run."""
    zeros = {query: 0.0 for name in sorted(trial.learners) for query in problem.queries.get(name, (name,))}
    return Outcome(zeros, dict(zeros), frozenset(), 0, 0.0, "saves less")
