"""Confirmation of what a search commits, on images that the search never sees, before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..judging.exams import unchanged
from ..search.search import Found
from ..training.goals import reached
from ..training.subjects import Judgement, State, Subject

__all__ = ["Confirmer"]


class Confirmer:
    """Judge of committed weights by the images that choose nothing.

    The search is not told what comes of it, so these images stay images that choose nothing. A model that fails gets
    its original weights in what is written; the models that it shared with keep theirs. That is always possible,
    because every model holds all of its weights.

    Args:
        subjects: the models, by name.
    """

    def __init__(self, subjects: Mapping[str, Subject]) -> None:
        self._subjects = dict(subjects)
        self._originals = {name: subject.state() for name, subject in subjects.items()}
        self._known: dict[str, tuple[State, dict[str, Judgement]]] = {}

    def confirmed(self, found: Found) -> Found:
        """Return the state of a search in which models that are not confirmed have their original weights."""
        passed = {name for name in found.models if self._passes(name, found)}
        sharing, forms = found.sharing.of(passed), found.forms.of(passed)
        back = {name: self._originals[name] for name in found.models - sharing.models - forms.models}
        states = {**found.states, **back}
        return replace(found, states=states, sharing=sharing, forms=forms)

    def judgements(self, model: str, state: State) -> dict[str, Judgement]:
        """Return query -> judgement of a model with some weights, by the images that confirm.

        Args:
            model: name of the model.
            state: the weights; the last ones that were judged are remembered for each model.
        """
        known = self._known.get(model)
        if known is None or known[0] is not state:
            subject = self._subjects[model]
            before = subject.state()
            subject.restore(state)
            try:
                known = self._known[model] = state, subject.judged("confirm")
            finally:
                subject.restore(before)
        return known[1]

    def originals(self, model: str) -> dict[str, Judgement]:
        """Return query -> judgement of a model with its original weights, by the images that confirm."""
        return {held.query.name: unchanged(held.confirm) for held in self._subjects[model].held}

    def _passes(self, model: str, found: Found) -> bool:
        return reached([self._subjects[model]], self.judgements(model, found.states[model]))
