"""Rules for the trials of a search: what of a trial is kept, and which trials of a batch are skipped."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ..forms.form_map import FormMap, saved_bytes
from ..layers.problem import Problem
from ..layers.sharing import SharingMap
from ..training.trial import Outcome, Trial

__all__ = ["SAVES_LESS", "is_outdated", "kept", "released", "saves_less", "skipped", "useful_trials"]

SAVES_LESS = "saves less"
"""How a trial ended that did not run, as it could not save enough beside what is committed."""

_WORTH = 0.01
"""Minimum gain over the forms that a trial replaces, as a fraction of all layers' bytes. Where forms of W5
left 11 % to save, one-way trials of minutes each brought 0.8 %, 0.3 % and 0.2 %, and none was confirmed."""


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


def is_outdated(trial: Trial, changed: Collection[str]) -> bool:
    """Check whether a trial would change one of the models ``changed``, which a trial of the same batch has changed."""
    return not trial.sharing.tied(trial.learners).isdisjoint(changed)


def skipped() -> Outcome:
    """Return the outcome of a trial that did not run because an earlier trial of its batch was accepted."""
    return Outcome({}, {}, frozenset(), 0, 0.0, "skipped")


def useful_trials(
    trials: Sequence[Trial],
    problem: Problem,
    sharing: SharingMap,
    forms: FormMap,
    waiting: frozenset[str] = frozenset(),
) -> list[Trial]:
    """Return the trials of a batch that could save enough beside what is committed.

    A strategy knows nothing of forms. Where these save more than its sharing would, or hardly less, a trial is useless.
    One in which a model joins others that wait is useful in any case, because more models may follow.

    Args:
        trials: the trials of a batch.
        problem: the layers of all models.
        sharing: sharing map that is committed so far.
        forms: forms that are committed so far.
        waiting: names of the models that reach their goals with the weights after the last training, which are not
            committed, as they save less than what is.
    """
    if not forms.forms:
        return list(trials)
    saved = saved_bytes(problem, sharing, forms)

    def pays(trial: Trial) -> bool:
        """Check whether a trial saves enough if all its models reach their goals."""
        left = forms.without(trial.sharing.models & trial.learners)
        least = saved if left == forms else saved + _WORTH * problem.bytes
        return saved_bytes(problem, sharing.joined(trial.sharing.slots), left) >= least

    def joins(trial: Trial) -> bool:
        """Check whether a trial's learners join waiting models."""
        return trial.base == "last" and bool(waiting & trial.sharing.models - trial.learners)

    return [each for each in trials if each.forms.forms or each.measure or joins(each) or pays(each)]


def released(trial: Trial, problem: Problem) -> Outcome:
    """Return the outcome of a trial that gives its learners their original weights."""
    ones = {query: 1.0 for name in sorted(trial.learners) for query in problem.queries.get(name, (name,))}
    return Outcome({}, ones, trial.learners, 0, 0.0, "released")


def saves_less(trial: Trial, problem: Problem) -> Outcome:
    """Return the outcome of a trial that did not run because it could not save enough beside what is committed."""
    zeros = {query: 0.0 for name in sorted(trial.learners) for query in problem.queries.get(name, (name,))}
    return Outcome(zeros, dict(zeros), frozenset(), 0, 0.0, SAVES_LESS)
