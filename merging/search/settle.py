"""Settle trials: decide what of a trial's result is committed, and change the state of the search."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from ..forms.form_map import FormMap, saved_bytes
from ..layers.problem import Problem
from ..layers.sharing import Slot, Use
from ..strategies import Verdict
from ..training.subjects import State
from ..training.trial import Outcome, Trial
from .found import Found
from .keeping import kept

__all__ = ["LastTrained", "advance_weights", "judge_trial", "release_models"]


@dataclass
class LastTrained:
    """Weights after the last trial that trained, and the accuracies reached with them."""

    states: dict[str, State]
    accuracies: dict[str, float]
    met: frozenset[str]
    """Names of the models that reach their goals with the weights in ``states``."""
    renewed: frozenset[str] = frozenset()
    """Names of the models whose weights in ``states`` are not those that are committed."""

    @property
    def waiting(self) -> frozenset[str]:
        """Names of the models that reach their goals with weights that are not committed."""
        return self.renewed & self.met


def advance_weights(trial: Trial, outcome: Outcome, found: Found, last: LastTrained) -> LastTrained:
    """Return all models' weights after a trial: new for the models that it retrained, else those it started from."""
    # Committed weights reach their goals, and so do the original weights of models that share nothing.
    base = last if trial.base == "last" else LastTrained(found.states, found.accuracies, frozenset(found.states))
    return LastTrained(
        {**base.states, **outcome.states},
        {**base.accuracies, **outcome.accuracies},
        (base.met - trial.learners) | outcome.met,
        (base.renewed if trial.base == "last" else frozenset()) | trial.learners,
    )


def judge_trial(trial: Trial, outcome: Outcome, problem: Problem, found: Found, last: LastTrained) -> Verdict:
    """Commit a trial's sharing between the models that reach their goals, if it saves more bytes; return the verdict.

    A further round of the same training with the same sharing is committed, too, if accuracies improve. Models that all
    share already risk what they have: their training counts if it ended early, with goals reached to spare, because
    other images confirm the result, and whoever fails there may lose all that it shares. A trial without training is
    committed as a whole or not at all. Models that get new weights lose the forms that they had. A weight that is
    shared with a model that does not learn has the form that the weight has there.
    """
    if trial.measure:
        return Verdict(trial, outcome, False, found.sharing)
    if trial.recipe is None:
        if outcome.met < trial.learners:
            return Verdict(trial, outcome, False, found.sharing)
        last = advance_weights(replace(trial, base="committed"), outcome, found, last)
    elif trial.recipe.spare and not outcome.has_spare and _all_share_less(trial, found):
        return Verdict(trial, outcome, False, found.sharing)
    sharing = kept(trial.sharing, found.sharing, last.met)
    if sharing is None:
        return Verdict(trial, outcome, False, found.sharing)
    touched = (frozenset(sharing.models) | trial.forms.models) & last.met
    forms = found.forms.without(touched & (trial.learners | last.renewed)).joined(trial.forms.of(touched))
    lent = {use: source for slot in sharing.slots for use, source in _lent(slot, trial.learners, forms)}
    forms = forms.joined({use: forms.by_use[source] for use, source in lent.items()})
    # Models that miss their goals go back to their earlier weights, and so to their earlier accuracies.
    queries = {query for name in touched for query in problem.queries.get(name, (name,))}
    accuracies = {query: value for query, value in last.accuracies.items() if query in queries}
    accepted = saved_bytes(problem, sharing, forms) > saved_bytes(problem, found.sharing, found.forms)
    if accepted or (trial.base == "last" and sharing == found.sharing and _better(accuracies, found.accuracies)):
        found.sharing, found.forms = sharing, forms
        codes = found.codes | {use: each for use, each in outcome.codes.items() if use.model in touched}
        codes |= {use: codes[source] for use, source in lent.items() if source in codes}
        found.codes = {use: each for use, each in codes.items() if use in forms.uses}
        found.states |= {name: last.states[name] for name in touched}
        found.accuracies |= accuracies
        last.renewed -= touched
    return Verdict(trial, outcome, accepted, found.sharing)


def _all_share_less(trial: Trial, found: Found) -> bool:
    """Check whether all learners of a trial share already, and would share more."""
    learners = trial.learners
    return learners <= found.sharing.models and trial.sharing.of(learners) != found.sharing.of(learners)


def _lent(slot: Slot, learners: frozenset[str], forms: FormMap) -> Iterator[tuple[Use, Use]]:
    """Yield (weight of a learner, weight with a form of a model that does not learn) of weights that are one tensor."""
    source = next((use for use in slot if use.model not in learners and use in forms.by_use), None)
    if source is not None:
        yield from ((use, source) for use in slot if use.model in learners)


def release_models(
    trial: Trial, outcome: Outcome, originals: Mapping[str, State], found: Found, queries: Collection[str]
) -> Verdict:
    """Give a trial's learners their original weights; all other models keep theirs, bit for bit. Return the verdict.

    Args:
        trial: the trial.
        outcome: outcome of the trial.
        originals: model name -> original weights.
        found: state of the search, which is changed.
        queries: names of the queries of the learners.
    """
    gone = trial.learners
    found.sharing = found.sharing.without({use for use in found.sharing.uses if use.model in gone})
    found.forms = found.forms.without(gone)
    found.codes = {use: each for use, each in found.codes.items() if use.model not in gone}
    found.states |= {name: originals[name] for name in gone}
    found.accuracies = {query: value for query, value in found.accuracies.items() if query not in queries}
    found.retained -= gone
    return Verdict(trial, outcome, True, found.sharing)


def _better(accuracies: Mapping[str, float], than: Mapping[str, float]) -> bool:
    """Check whether the mean ratio of ``accuracies`` to the earlier accuracies ``than``, both by query, is above 1."""
    return sum(value / than[query] for query, value in accuracies.items()) > len(accuracies)
