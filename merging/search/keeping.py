"""Rules for the trials of a search: what of a trial is kept, and which trials of a batch are skipped."""

from __future__ import annotations

from collections.abc import Collection

from ..layers.sharing import SharingMap
from ..training.trial import Outcome, Trial

__all__ = ["is_outdated", "kept", "skipped"]


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
