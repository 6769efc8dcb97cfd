"""First plan of a run: made before the run begins, so that what cannot be reached is said then."""

from __future__ import annotations

import logging
from dataclasses import replace

from ..planning.feasibility import find_shortage
from ..planning.planner import make_plan
from .plan_input import Swapping

__all__ = ["with_first_plan"]

_log = logging.getLogger(__name__)


def with_first_plan(swapping: Swapping) -> Swapping:
    """Return the input of a run's plans with the plan to begin with; warn in one line of rates that it does not reach.

    To say what would be enough, more plans are made, each of which may take as long as the first. So this is not called
    on the runner's thread.

    Args:
        swapping: input of the run's plans.

    Raises:
        InputError: the objective is about accuracy, and a query has no staleness curve.
    """
    plan = make_plan(swapping.profile, swapping.budget, swapping.policy)
    shortage = find_shortage(swapping.profile, swapping.budget, swapping.policy, plan)
    if shortage is not None:
        _log.warning("%s", shortage)
    return replace(swapping, plan=plan)
