"""The paper's heuristic and its ablations: share one more group of layers, retrain, and keep all, half or none of it.

Padmanabhan et al., "Gemel: Model Merging for Memory-Efficient, Real-Time Video Analytics at the Edge" (NSDI 2023), as
in the published code but without its defects: a group is committed only for models whose queries keep their targets,
and the other models get back the weights that they had.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from ..layers.problem import Candidates, Problem
from ..layers.sharing import SharingMap
from ..training.training import Recipe
from ..training.trial import Start, Trial
from . import Search, SearchSettings, Strategy

__all__ = ["earliest", "heaviest", "latest", "one_model", "shuffled", "two_group"]

_RATE = 1e-5
"""Learning rate of the published code."""


def _stepwise(order: str) -> Strategy:
    """Return a strategy that tries the groups of layers one after the other.

    Args:
        order: heaviest, earliest, latest, random, two-group or one-model; see ``STRATEGIES``.
    """

    def search(problem: Problem, settings: SearchSettings) -> Search:
        """Yield one trial at a time, each with one more group or with half of a group that failed."""
        waiting = _ordered(order, problem)
        shared = SharingMap()
        while waiting:
            taken, waiting = waiting[: 2 if order == "two-group" else 1], waiting[2 if order == "two-group" else 1 :]
            while taken:
                wanted = shared.joined(slot for group in taken for slot in group.slots)
                (verdict,) = yield [_trial(taken, wanted, problem, settings)]
                shared = verdict.sharing
                if verdict.accepted:
                    break
                # As in the published code: give a group up when half of it saves less than the next group does.
                taken = _halved(taken, problem)
                if taken and waiting and sum(group.saving for group in taken) < waiting[0].saving:
                    break

    return search


heaviest = _stepwise("heaviest")
"""Tries the group with the largest saving first: the paper's heuristic."""
earliest = _stepwise("earliest")
"""Tries groups from the input of the models to their output."""
latest = _stepwise("latest")
"""Tries groups from the output of the models to their input."""
shuffled = _stepwise("random")
"""Tries groups in random order."""
two_group = _stepwise("two-group")
"""Tries two groups at a time, largest saving first."""
one_model = _stepwise("one-model")
"""Adds one more model at a time, with all layers that it can share."""


def _ordered(order: str, problem: Problem) -> list[Candidates]:
    """Return the groups of a problem in the order in which to try them."""
    groups = problem.groups()
    if order == "earliest":
        return sorted(groups, key=lambda group: group.position)
    if order == "latest":
        return sorted(groups, key=lambda group: -group.position)
    if order == "random":
        random.Random(problem.seed).shuffle(groups)
        return groups
    if order == "one-model":
        return _by_model(groups, problem)
    return groups


def _by_model(groups: Sequence[Candidates], problem: Problem) -> list[Candidates]:
    """Return a group for each model but the largest: all layers that it can share with larger models.

    The groups are ordered by the models' sizes, largest first.
    """
    models = sorted(problem.models, key=lambda name: -sum(layer.bytes for layer in problem.shareable(name)))
    found = []
    for count in range(2, len(models) + 1):
        known, new = set(models[:count]), models[count - 1]
        kept = (tuple(use for use in slot if use.model in known) for group in groups for slot in group.slots)
        slots = tuple(slot for slot in kept if len(slot) > 1 and any(use.model == new for use in slot))
        if slots:
            saving = problem.saved(SharingMap(slots))
            found.append(Candidates(f"all layers of {new}", tuple(models[:count]), slots, saving, 0))
    return found


def _trial(taken: Sequence[Candidates], wanted: SharingMap, problem: Problem, settings: SearchSettings) -> Trial:
    """Return a trial of some groups: training on labels for some epochs, at a constant learning rate.

    Models that share weights with the models of the groups already are retrained with them.

    Args:
        taken: the groups.
        wanted: all sharing during the trial.
        problem: the layers of all models.
        settings: the user's settings.
    """
    learners = wanted.tied({use.model for group in taken for slot in group.slots for use in slot})
    recipe = Recipe(
        steps=settings.epochs,
        unit="epochs",
        rate=settings.rate or _RATE,
        batch=settings.batch,
        supervision="labels",
        schedule="constant",
        checks=settings.epochs,
    )
    start = Start(settings.start or "first", problem.models)
    title = " + ".join(f"{group.definition} ({len(group.slots)} x {len(group.models)})" for group in taken)
    return Trial(title, wanted, learners, start, recipe)


def _halved(taken: Sequence[Candidates], problem: Problem) -> list[Candidates]:
    """Return the first half of some groups, to be tried after they failed.

    Several groups are halved as a list. A single group is halved by its layers, or by its models if it has one layer. A
    single pair has no half.
    """
    if len(taken) > 1:
        return list(taken[: len(taken) // 2])
    (group,) = taken
    if len(group.slots) > 1:
        slots = group.slots[: len(group.slots) // 2]
    elif len(group.models) > 2:
        models = group.models[: (len(group.models) + 1) // 2]
        left = (tuple(use for use in slot if use.model in models) for slot in group.slots)
        slots = tuple(slot for slot in left if len(slot) > 1)
    else:
        return []
    if not slots:
        return []
    models = tuple(dict.fromkeys(use.model for slot in slots for use in slot))
    return [replace(group, slots=slots, models=models, saving=problem.saved(SharingMap(slots)))]
