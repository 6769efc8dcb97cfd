"""Review of the plan of a run: whether the plan still fits the run, and if not, the profile for a new plan."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Collection, Mapping
from statistics import median

from .profile import ModelProfile, Profile

__all__ = ["Review"]

_EVERY_MS = 1000.0
"""Milliseconds between two regular reviews of the plan that a run follows."""
_RUNS = 9
"""Number of a model's newest turns whose median time is compared with the time in the profile."""
_OFF = 1.5
"""Factor by which a model's median turn may be longer or shorter than in the profile before a new plan is made."""
_DOUBLINGS = 4
"""Maximum number of doublings of the time for which a query without frames remains in the plan."""


class Review:
    """Observations of a run since its last plan: times of turns, and whether memory refused a transfer.

    Args:
        profile: profile that the first plan was made from.
    """

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        """Profile that the current plan was made from."""
        self.replans = 0
        """Number of new plans that the run has followed so far."""
        self._whole = profile
        self._last = 0.0
        self.lost = False
        """Whether segments are missing from memory that the plan expects there, so that a new plan is needed.

        Set by the caller when memory refuses a transfer of the plan.
        """
        self._returns: dict[str, int] = defaultdict(int)
        """Query -> number of times that the query returned to the plan after it was left out for lack of frames."""
        self._ratios: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_RUNS))
        """Model -> measured milliseconds of its newest turns, divided by the milliseconds that the profile expects."""

    def ran(self, queries: Collection[str], expected_ms: float, milliseconds: float) -> None:
        """Note how many milliseconds a turn took.

        Args:
            queries: queries that ran in the turn.
            expected_ms: milliseconds that the turn takes by the current profile.
            milliseconds: milliseconds that the turn took.
        """
        if expected_ms > 0:
            for model in {self.profile.queries[query].model for query in queries}:
                self._ratios[model].append(milliseconds / expected_ms)

    def due(self, now: float) -> bool:
        """Return whether the next regular review of the current plan is due, ``now`` milliseconds after the run began.

        The caller reviews the plan by calling :meth:`revised`.
        """
        return now - self._last >= _EVERY_MS

    def revised(self, active: Collection[str], now: float) -> Profile | None:
        """Review the current plan; return the profile for a new plan, with active queries and measured times.

        The current plan remains in force until :meth:`follow` is called.

        Args:
            active: queries that have frames, or may have some soon. If there are none, the plan stays as it is.
            now: milliseconds since the run began.

        Returns:
            Profile for a new plan; None if the current plan still fits.
        """
        self._last = now
        queries = {name: spec for name, spec in self._whole.queries.items() if name in active}
        models = self._measured()
        fits = models is self.profile.models and queries.keys() == self.profile.queries.keys()
        if not queries or (fits and not self.lost):
            return None
        return self.profile.model_copy(update={"queries": queries, "models": models})

    def follow(self, profile: Profile) -> None:
        """Note that the run follows a new plan from now on, which was made from ``profile``."""
        for query in profile.queries.keys() - self.profile.queries.keys():
            self._returns[query] += 1
        self.lost = False
        self.replans += 1
        self.profile = profile

    def patience(self, query: str) -> int:
        """Return the factor, 1 to 16, of the time that a query may be without frames before plans leave the query out.

        The factor doubles each time that the query returns to the plan, so that a feed with interruptions does not
        change the plan again and again.
        """
        return int(2 ** min(self._returns[query], _DOUBLINGS))

    def _measured(self) -> Mapping[str, ModelProfile]:
        """Return the profile's models, with measured times for models whose turns differ much from the profile.

        If no model's turns differ much from the profile, the profile's own mapping is returned, as the same object.
        """
        off = {
            model: ratio
            for model, ratios in self._ratios.items()
            if len(ratios) == _RUNS and not 1 / _OFF < (ratio := median(ratios)) < _OFF
        }
        models = self.profile.models
        if not off:
            return models
        for model, ratio in off.items():
            self._ratios[model].clear()
            models = {**models, model: models[model].slower(ratio)}
        return models
