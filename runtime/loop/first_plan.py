"""First plan of a run: made before the run begins, so that what cannot be reached is said then."""

from __future__ import annotations

import logging

from ..planning.feasibility import find_shortage
from ..planning.planner import Plan, make_plan
from .plan_input import Swapping

__all__ = ["first_plan"]

_log = logging.getLogger(__name__)


def first_plan(swapping: Swapping | None) -> Plan | None:
    """Return the plan that a run begins with; warn in one line if a query gets less than its minimum rate.

    To say what would be enough, more plans are made, each of which may take as long as the first. So this is not called
    on the runner's thread.

    Args:
        swapping: input of the run's plans; None if all weights are in memory, so that nothing is planned.

    Raises:
        InputError: the objective is about accuracy, and a query has no staleness curve.
    """
    if swapping is None:
        return None
    plan = make_plan(swapping.profile, swapping.budget, swapping.policy)
    shortage = find_shortage(swapping.profile, swapping.budget, swapping.policy, plan)
    if shortage is not None:
        _log.warning("%s", shortage)
    return plan
