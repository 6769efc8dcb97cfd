"""Whether a plan still fits what happens, and by which profile to plan anew if not."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Collection, Mapping
from statistics import median

import numpy as np

from .profile import ModelProfile, Profile

__all__ = ["Review"]

_EVERY_MS = 1000.0
"""How often the plan is looked at."""
_RUNS = 9
_OFF = 1.5
"""Runs that take so much longer or shorter than in the profile call for another plan."""


class Review:
    """What was seen since the last plan.

    Args:
        profile: that the first plan was made by.
    """

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        """What the plan in force was made by."""
        self.replans = 0
        self._whole = profile
        self._last = 0.0
        self.lost = False
        """Whether memory is not as the plan has it, so that another one is needed."""
        self._ratios: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_RUNS))
        """By model: milliseconds of the last runs, divided by those of the profile."""

    def ran(self, query: str, frames: int, milliseconds: float) -> None:
        """A query has been run on so many frames."""
        model = self.profile.queries[query].model
        batches, times = zip(*sorted(self.profile.models[model].run_ms.items()), strict=True)
        # Not the time of the next larger batch: plans would be made anew only because batches are not full.
        expected = float(np.interp(frames, batches, times))
        if expected > 0:
            self._ratios[model].append(milliseconds / expected)

    def due(self, now: float) -> bool:
        """Whether it is time for :meth:`revised`; ``now`` in milliseconds."""
        return now - self._last >= _EVERY_MS

    def revised(self, active: Collection[str], now: float) -> Profile | None:
        """A profile of the queries that are active, with the times that were measured; None where the plan still fits.

        Args:
            active: queries that have frames. While there are none, the plan stays as it is.
            now: in milliseconds.
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
        """Models with other times where runs are far from the profile; the profile's own where none are."""
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
