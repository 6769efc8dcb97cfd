"""Confirmation of what a search commits, on images that the search never sees, before anything is written."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import cast

from torch import nn

from ..forms.apply import FormCoder
from ..forms.form_map import FormMap, saved_bytes
from ..forms.quantize import Coded
from ..judging.exams import unchanged
from ..layers.problem import Problem
from ..layers.sharing import Use
from ..search.search import Found
from ..training.goals import holds, reached
from ..training.subjects import Judgement, State, Subject

__all__ = ["Confirmer"]

_Kept = tuple[FormMap, State, Mapping[Use, Coded]]
"""Forms of one model's weights, the weights that they give, and their codes."""


class Confirmer:
    """Judge of committed weights by the images that choose nothing.

    The search is not told what comes of it, so these images stay images that choose nothing. A model that fails gets
    its original weights in what is written; the models that it shared with keep theirs. That is always possible,
    because every model holds all of its weights. If what was confirmed of an earlier state saves more than what is
    left, all models go back to that.

    A model of an earlier merge that the search has left as it was stays so if no measured value speaks against it. That
    alone the search knows already: it judges these models by all images (:mod:`gemel.merging.strategies.rejoin`).

    A model that only has forms gets the last of them that holds. They are tested in an order that the images have no
    part in: from the most bytes to the fewest, up to the first failure. Such a sequence of tests has the error rate of
    a single test (Maurer, Hothorn and Lehmacher, 1995). So have a model's weights in the states of a search, in their
    order up to its first failure. As the last state counts in any case, a merge that goes back has at most twice that
    error rate.

    Args:
        problem: the layers of all models.
        subjects: the models, by name.
        originals: model name -> original weights.
    """

    def __init__(self, problem: Problem, subjects: Mapping[str, Subject], originals: Mapping[str, State]) -> None:
        self._problem, self._subjects, self._originals = problem, dict(subjects), originals
        self.kept: Found | None = None
        """What was confirmed of an earlier state, with the verdicts up to then: what a merge goes back to."""
        self.failed = frozenset[str]()
        """Names of the models that had weights which were not confirmed. What they get later is not kept."""
        # The weights that the search found, those that are written, and those to go back to.
        self._known: dict[str, deque[tuple[State, dict[str, Judgement]]]] = {name: deque(maxlen=3) for name in subjects}
        self._tested: dict[tuple[str, FormMap], _Kept | None] = {}
        """Model and forms -> what the forms give, if the images that confirm accept it, else None."""

    def confirmed(self, found: Found) -> Found:
        """Return what may be written of a search: what is confirmed of it or, if that saves more, :attr:`kept`.

        Codes of ``found`` must be complete.
        """
        left = self._confirmed_part(found)
        before = -1 if self.kept is None else self._saved(self.kept)
        if self._saved(left) < before:
            assert self.kept is not None
            written = replace(self.kept, verdicts=found.verdicts, samples=found.samples)
        else:
            written = left
            known = {} if self.kept is None else self.kept.states
            new = {name for name in left.models if known.get(name) is not left.states[name]}
            # Models of an earlier merge are not judged by their bounds, so they are nothing to go back to.
            if new.isdisjoint(self.failed) and not found.retained:
                self.kept = replace(left, states=dict(left.states), verdicts=list(found.verdicts))
        self.failed |= {name for name in found.models if left.states[name] is not found.states[name]}
        return written

    def go_on(self, found: Found, failed: frozenset[str]) -> None:
        """Set :attr:`kept` and :attr:`failed` as they were in an earlier run.

        Args:
            found: state of the search of which a part was kept; models that are not merged are missing.
            failed: names of models.
        """
        self.kept = self._confirmed_part(replace(found, states={**self._originals, **found.states}))
        self.failed = failed

    def _saved(self, found: Found) -> int:
        return saved_bytes(self._problem, found.sharing, found.forms)

    def _confirmed_part(self, found: Found) -> Found:
        """Return the state of a search in which models that are not confirmed have forms of more bits, if those hold.

        Otherwise they have their original weights. Codes are those of ``found`` and of the forms of more bits.
        """
        confirmed = {name: self._confirmed(name, found) for name in sorted(found.models)}
        kept = {name: each for name, each in confirmed.items() if each is not None}
        as_found = {name for name, (_, state, _) in kept.items() if state is found.states[name]}
        sharing, forms = found.sharing.of(as_found), found.forms.of(as_found)
        retained = found.retained & as_found
        states, codes = dict(found.states), dict(found.codes)
        # A model with which nobody shares any more has its original weights, too, unless it has forms or is retained.
        for name in found.models - sharing.models - forms.models - retained:
            states[name] = self._originals[name]
            if name in kept and name not in as_found:
                more, states[name], new = kept[name]
                forms, codes = forms.joined(more), {**codes, **new}
        return replace(found, states=states, sharing=sharing, forms=forms, codes=codes, retained=retained)

    def judgements(self, model: str, state: State) -> dict[str, Judgement]:
        """Return query -> judgement of a model with some weights, by the images that confirm.

        Args:
            model: name of the model.
            state: the weights; the last three that were judged are remembered for each model.
        """
        known = self._known[model]
        found = next((judged for judged_state, judged in known if judged_state is state), None)
        if found is None:
            subject = self._subjects[model]
            before = subject.state()
            subject.restore(state)
            try:
                found = subject.judged("confirm")
            finally:
                subject.restore(before)
            known.append((state, found))
        return found

    def originals(self, model: str) -> dict[str, Judgement]:
        """Return query -> judgement of a model with its original weights, by the images that confirm."""
        return {held.query.name: unchanged(held.confirm) for held in self._subjects[model].held}

    def _confirmed(self, model: str, found: Found) -> _Kept | None:
        """Return the last form of a model's weights that holds, of those that the search went through; None if none.

        Args:
            model: name of the model.
            found: state of the search. Before the committed forms come forms of more bytes, untrained, with which the
                model reached its goals.
        """
        layers, committed = self._subjects[model].layers, found.forms.of({model})
        last = committed, found.states[model], dict[Use, Coded]()
        if model in found.retained:
            judged = self.judgements(model, found.states[model])
            return last if holds([self._subjects[model]], judged) else None
        kept = None
        if model not in found.sharing.models:
            tried = {
                verdict.trial.forms.of({model})
                for verdict in found.verdicts
                if verdict.trial.base == "original" and verdict.trial.recipe is None and model in verdict.outcome.met
            }
            # Differences and compression are two searches: one is no step on the way to the other.
            tried = {forms for forms in tried if bool(forms.differences.forms) == bool(committed.differences.forms)}
            sizes = {forms: forms.bytes(layers) for forms in tried if forms.forms}
            for forms in sorted(sizes, key=lambda each: (-sizes[each], each.forms)):
                if sizes[forms] <= committed.bytes(layers):
                    break
                if (tested := self._test(model, forms)) is None:
                    return kept
                kept = tested
        return last if self._passes(model, found.states[model]) else kept

    def _test(self, model: str, forms: FormMap) -> _Kept | None:
        """Give a model with its original weights some forms; return what they give if the model reaches its goals."""
        key = model, forms
        if key not in self._tested:
            subject = self._subjects[model]
            before = subject.state()
            subject.restore(self._originals[model])
            stage = cast("nn.Module", subject.student.model)
            coder = FormCoder({model: stage}, forms, subject.bases)
            kept = forms, subject.state(), dict(coder.codes)
            subject.restore(before)
            self._tested[key] = kept if self._passes(model, kept[1]) else None
        return self._tested[key]

    def _passes(self, model: str, state: State) -> bool:
        return reached([self._subjects[model]], self.judgements(model, state))
