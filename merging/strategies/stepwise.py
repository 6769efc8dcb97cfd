"""The paper's heuristic and its ablations: share one more group, retrain, keep it or half of it, go on.

Padmanabhan et al., "Gemel" (NSDI 2023), in the form of the published code, without its defects: a group is confirmed
only for models whose accuracy holds, and the others go back to the weights they had.
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

__all__ = ["stepwise"]

_RATE = 1e-5
"""The published code's learning rate."""


def stepwise(order: str) -> Strategy:
    """A strategy that goes through the groups in an order: heaviest, earliest, latest, random, two-group, one-model."""

    def search(problem: Problem, settings: SearchSettings) -> Search:
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
                # The published code gives a group up when half of it would save less than the next group does.
                taken = _halved(taken, problem)
                if taken and waiting and sum(group.saving for group in taken) < waiting[0].saving:
                    break

    return search


def _ordered(order: str, problem: Problem) -> list[Candidates]:
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
    """For each model but the first, largest first: all that it shares with those before it."""
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
    """All models of the groups, and those that are tied to them already, learn from labels for some epochs."""
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
    """The first half: of the groups, else of a group's layers, else of its models; nothing is left of a single pair."""
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
