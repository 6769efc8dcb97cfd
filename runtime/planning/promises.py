"""Promises of a plan: expected frame rate and accuracy of each query, and the minimum rate that the user asked for."""

from __future__ import annotations

from dataclasses import dataclass

from .planner import Plan
from .profile import Profile

__all__ = ["Promise", "promises"]


@dataclass(frozen=True, slots=True)
class Promise:
    """Frame rate and accuracy that a plan promises one query, with the minimum rate that the user asked for."""

    fps: float
    """Frames per second that are expected to be answered within the SLA."""
    feed_fps: float
    """Frames per second of the query's feed."""
    min_fps: float
    """Frames per second that the query must at least answer, as the user asked."""
    accuracy: float | None = None
    """Expected accuracy of every frame's answer, 0 to 1; None if a query of the plan has no staleness curve."""

    def to_json(self) -> dict[str, float | None]:
        """Return the promise as JSON fields, as in ``plan.promised`` of summary.json."""
        return {
            "fps": round(self.fps, 3),
            "feed_fps": round(self.feed_fps, 3),
            "min_fps": round(self.min_fps, 3),
            "accuracy": None if self.accuracy is None else round(self.accuracy, 4),
        }


def promises(profile: Profile, plan: Plan) -> dict[str, Promise]:
    """Return query -> frame rate and accuracy that a plan promises the query.

    Args:
        profile: profile that the plan was made from.
        plan: plan of the profile's queries.
    """
    accuracy = plan.accuracy or {}
    return {
        name: Promise(plan.frames[name], query.fps, query.min_fps, accuracy.get(name))
        for name, query in profile.queries.items()
    }
