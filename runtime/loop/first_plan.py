"""First plan of a run, made before the run begins, so that a warning about rates it does not reach comes early."""

from __future__ import annotations

import logging
from dataclasses import replace

from ..planning.feasibility import find_shortage
from ..planning.planner import make_plan
from .plan_input import Swapping

__all__ = ["with_first_plan"]

_log = logging.getLogger(__name__)


def with_first_plan(swapping: Swapping) -> Swapping:
    """Make the plan that a run begins with, and return the input of the run's plans with this plan in it.

    If the plan gives a query fewer frames than its minimum rate, one line warns of that and says what would be enough.
    To find that out, more plans are made, each of which may take as long as the first. The function is therefore not
    called on the runner's thread.

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
