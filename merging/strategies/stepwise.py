"""The paper's heuristic and its ablations: share one more group of layers, retrain, and keep all, half or none of it.

The paper is Padmanabhan et al., "Gemel: Model Merging for Memory-Efficient, Real-Time Video Analytics at the Edge"
(NSDI 2023). The strategies follow its published code without the code's defects: a group is committed only for models
whose queries keep their targets, and the other models get back the weights that they had.
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
"""Learning rate of the paper's published code."""


def _stepwise(order: str) -> Strategy:
    """Return a search strategy that tries the groups of layers one after the other.

    Args:
        order: heaviest, earliest, latest, random, two-group or one-model; see :data:`.strategies.STRATEGIES`.
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
"""Strategy that tries groups of layers in order of falling saving, as the heuristic of the GEMEL paper does."""
earliest = _stepwise("earliest")
"""Strategy that tries groups of layers from the input of the models to their output."""
latest = _stepwise("latest")
"""Strategy that tries groups of layers from the output of the models to their input."""
shuffled = _stepwise("random")
"""Strategy that tries groups of layers in random order."""
two_group = _stepwise("two-group")
"""Strategy that tries two groups of layers at a time, largest saving first."""
one_model = _stepwise("one-model")
"""Strategy that adds one more model at a time, with all layers that the model can share."""


def _ordered(order: str, problem: Problem) -> list[Candidates]:
    """Return the groups of layers of a problem in the order in which to try them."""
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
    """Return a group of layers for each model but the largest: all layers that the model can share with larger models.

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
    """Return a trial of some groups of layers: training on labels for some epochs, at a constant learning rate.

    All models with layers in the groups are retrained, and so are models that already share weights with them.

    Args:
        taken: groups of layers to share in addition to what is committed.
        wanted: sharing map that holds during the trial.
        problem: the layers of all models.
        settings: the user's settings.
    """
    learners = wanted.tied({use.model for group in taken for slot in group.slots for use in slot})
    recipe = Recipe(
        steps=settings.epochs,
        unit="epochs",
        rate=settings.rate or _RATE,
        batch=settings.batch,
        supervision=settings.supervision or "labels",
        schedule="constant",
        checks=settings.epochs,
    )
    start = Start(settings.start or "first", problem.models)
    title = " + ".join(f"{group.definition} ({len(group.slots)} x {len(group.models)})" for group in taken)
    return Trial(title, wanted, learners, start, recipe)


def _halved(taken: Sequence[Candidates], problem: Problem) -> list[Candidates]:
    """Return the first half of some groups of layers, to be tried after all of the groups failed together.

    Several groups are halved as a list. A single group is halved by its layers, or by its models if it has one layer.
    The result is empty for a group of one layer in two models, which has no half.
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
