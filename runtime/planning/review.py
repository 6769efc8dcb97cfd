"""Reviewing a plan during a run: whether it still fits, and if not, the profile to plan by."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Collection, Mapping
from statistics import median

import numpy as np

from .profile import ModelProfile, Profile

__all__ = ["Review"]

_EVERY_MS = 1000.0
"""Milliseconds between two reviews."""
_RUNS = 9
"""Newest turns of a model whose median decides about its times."""
_OFF = 1.5
"""Factor by which turns may be longer or shorter than in the profile before a new plan is made."""


class Review:
    """Observations since the last plan: times of turns, and whether memory failed.

    Args:
        profile: the profile that the first plan was made by.
    """

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        """The profile that the plan in force was made by."""
        self.replans = 0
        """New plans that were called for."""
        self._whole = profile
        self._last = 0.0
        self.lost = False
        """Whether memory does not hold what the plan says, so that a new plan is needed. Set by the runner."""
        self._ratios: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_RUNS))
        """Model -> milliseconds of its newest turns, divided by those of the profile."""

    def ran(self, query: str, frames: int, milliseconds: float) -> None:
        """Note that a turn of a query on ``frames`` frames took so many milliseconds."""
        model = self.profile.queries[query].model
        sizes, times = zip(*sorted(self.profile.models[model].run_ms.items()), strict=True)
        # Interpolated: a turn with fewer frames than planned must not count as faster than the profile says.
        expected = float(np.interp(frames, sizes, times))
        if expected > 0:
            self._ratios[model].append(milliseconds / expected)

    def due(self, now: float) -> bool:
        """Return whether it is time for :meth:`revised`, at ``now`` milliseconds."""
        return now - self._last >= _EVERY_MS

    def revised(self, active: Collection[str], now: float) -> Profile | None:
        """Return the profile to plan by from now on: the active queries, with measured times.

        Args:
            active: queries that have frames. If there are none, the plan stays as it is.
            now: milliseconds since the run began.

        Returns:
            None if the plan still fits.
        """
        self._last = now
        queries = {name: spec for name, spec in self._whole.queries.items() if name in active}
        models = self._measured()
        fits = models is self.profile.models and queries.keys() == self.profile.queries.keys()
        if not queries or (fits and not self.lost):
            return None
        self.lost = False
        self.replans += 1
        self.profile = self.profile.model_copy(update={"queries": queries, "models": models})
        return self.profile

    def _measured(self) -> Mapping[str, ModelProfile]:
        """Return the profile's models, with measured times for those whose turns are far from the profile.

        If there are none, the very object of the profile is returned.
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
            times = {frames: time * ratio for frames, time in models[model].run_ms.items()}
            models = {**models, model: models[model].model_copy(update={"run_ms": times})}
        return models
