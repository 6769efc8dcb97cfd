"""Plans that are made while a run goes on, on a thread of their own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from threading import Thread

from ..planning.planner import Plan, Policy, make_plan
from ..planning.profile import Profile
from ..planning.review import Review

__all__ = ["PlansInBackground"]

_log = logging.getLogger(__name__)

_KEPT = 8
"""Maximum number of plans to keep, so that a feed that comes back gets its former plan at once."""


class PlansInBackground:
    """Maker of a run's new plans, on another thread. The old plan is followed until the new one is made.

    Args:
        review: review of the current plan.
        budget: maximum bytes of weights that may be in memory at once.
        policy: objective and constraints of plans.
        made: function called without arguments when a plan is made, on the other thread.
    """

    def __init__(self, review: Review, budget: int, policy: Policy, made: Callable[[], None]) -> None:
        self._review, self._budget, self._policy, self._made = review, budget, policy, made
        self._wanted: Profile | None = None
        """Profile from which a new plan was requested, until the run follows that plan; None if there is none."""
        self._plans: list[tuple[Profile, Plan]] = []
        """The newest plans and the profiles that they were made from, the newest last."""
        self._error: Exception | None = None

    def revised(self, now: float, active: Callable[[], Iterable[str]], *, at_once: bool) -> tuple[Profile, Plan] | None:
        """Return a new plan to follow from now on, and its profile; None if there is none.

        Args:
            now: milliseconds since the run began.
            active: function that returns the queries that have frames, or may have some soon.
            at_once: whether to review the current plan also if its next regular review is not due.

        Raises:
            Exception: the plan could not be made; the exception is that of :func:`..planning.planner.make_plan`.
        """
        if self._error is not None:
            raise self._error
        if self._wanted is None and (at_once or self._review.due(now)):
            self._wanted = self._review.revised(frozenset(active()), now)
            if self._wanted is not None and self._find() is None:
                Thread(target=self._make, args=(self._wanted,), name="gemel-plan", daemon=True).start()
        found = self._find()
        if found is not None:
            self._wanted = None
            self._review.follow(found[0])
            _log.info("planned anew for %s", ", ".join(found[0].queries))
        return found

    def _find(self) -> tuple[Profile, Plan] | None:
        return next((pair for pair in list(self._plans) if pair[0] == self._wanted), None)

    def _make(self, profile: Profile) -> None:
        try:
            plan = make_plan(profile, self._budget, self._policy)
            self._plans = [*self._plans[1 - _KEPT :], (profile, plan)]
        except Exception as error:
            self._error = error
        self._made()
