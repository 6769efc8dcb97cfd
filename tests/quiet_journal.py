"""Journal of a search that is kept in memory, for tests of searches."""

from __future__ import annotations

from collections.abc import Mapping

from gemel.merging.search.found import Found
from gemel.merging.strategies import Verdict
from gemel.merging.training.subjects import State
from gemel.merging.training.trial import Outcome, Trial


class Quiet:
    """Journal that recalls the given outcomes of trials, and keeps what is recorded in memory.

    Args:
        known: outcomes of the trials to recall.
        states: weights to restore once.
    """

    def __init__(self, *known: Outcome, states: Mapping[str, State] | None = None) -> None:
        self._known = list(known)
        self._states = states
        self.recorded: list[tuple[Trial, dict[str, State], dict[str, State]]] = []

    def recall(self, trial: Trial) -> Outcome | None:
        return self._known.pop(0) if self._known else None

    def restore(self, found: Found) -> tuple[Mapping[str, State], Mapping[str, State]] | None:
        if self._known:
            return None
        states, self._states = self._states, None
        return None if states is None else (states, states)

    def record(self, verdict: Verdict, found: Found, last: Mapping[str, State]) -> None:
        self.recorded.append((verdict.trial, dict(found.states), dict(last)))
