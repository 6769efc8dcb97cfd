"""Promises of a plan: what each query is expected to get, beside what was asked for it."""

from __future__ import annotations

from dataclasses import dataclass

from .planner import Plan
from .profile import Profile

__all__ = ["Promise", "promises"]


@dataclass(frozen=True, slots=True)
class Promise:
    """Frames and accuracy that a plan promises one query, beside what was asked for the query."""

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
    """Return query -> what a plan promises it.

    Args:
        profile: profile that the plan was made from.
        plan: plan of the profile's queries.
    """
    accuracy = plan.accuracy or {}
    return {
        name: Promise(plan.frames[name], query.fps, query.min_fps, accuracy.get(name))
        for name, query in profile.queries.items()
    }
