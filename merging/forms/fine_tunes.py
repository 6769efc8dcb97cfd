"""Fine-tunes: models that were fine-tuned from one checkpoint, and the base to which their weights are near.

A base is given in the workload, or found from the models: their mean. Kernels of fine-tunes lie near each other, while
kernels of models that were trained apart are as far from each other as random directions: the norm of their difference
is about 1.4 times their own norm.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from ...errors import InputError
from ..layers.layers import Kind, Layer, shareable
from ..layers.sharing import Use
from .form_map import can_have_form

__all__ = ["FineTunes", "find_fine_tunes", "kernel_distance"]

_NEAR = 0.7
"""Largest relative distance of two fine-tunes of one checkpoint, and of a fine-tune and its base.

The distance is the norm of the difference of all kernels divided by the mean norm of the kernels. Models that were
trained apart have about 1.4."""
_LEAST_COMMON = 0.5
"""Minimum fraction of each model's bytes of shareable weights that two models must have in common to be relatives."""

Weights = Mapping[str, Tensor]
"""State dict of a model, or the part of it that is needed."""


@dataclass(frozen=True)
class FineTunes:
    """Models that were fine-tuned from one checkpoint, with the base of each kernel that they have in common."""

    name: str
    """Path of the base as the workload gives it, or the name of the first model, for a base that was found."""
    given: bool
    """Whether the workload gives the base."""
    distances: Mapping[str, float]
    """Model name -> norm of the difference of its kernels to their bases, divided by the norm of the kernels."""
    bases: Mapping[str, Tensor]
    """Name of a base -> base, float32 in the shape of the kernel."""
    base_of: Mapping[Use, str]
    """Weight of a member's layer -> name of its base."""

    @property
    def members(self) -> tuple[str, ...]:
        """Names of the models in the family."""
        return tuple(self.distances)

    @property
    def description(self) -> str:
        """Line of text that names the models, the base, and how far the models are from it."""
        near, far = min(self.distances.values()), max(self.distances.values())
        base = f"their base {self.name}" if self.given else "the mean of them"
        return f"{', '.join(self.members)}: fine-tunes of one checkpoint, {near:.0%} to {far:.0%} away from {base}"


def find_fine_tunes(
    layers: Mapping[str, Sequence[Layer]],
    states: Mapping[str, Weights],
    given: Mapping[str, tuple[str, Weights]] | None = None,
) -> list[FineTunes]:
    """Return the families of fine-tunes among some models, families with a given base first.

    Args:
        layers: model name -> layers in the order in which they run.
        states: model name -> weights of these layers, on the CPU.
        given: model name -> path and state dict of the base that the workload gives for the model.

    Raises:
        InputError: a given base is no ancestor of its model.
    """
    given = given or {}
    files: dict[str, list[str]] = {}
    for name, (path, _) in given.items():
        files.setdefault(path, []).append(name)
    rest = {name: part for name, part in layers.items() if name not in given}
    return [
        *(
            _given_family(path, {name: layers[name] for name in names}, states, given[names[0]][1])
            for path, names in files.items()
        ),
        *(_found_family({name: rest[name] for name in members}, states) for members in _clusters(rest, states)),
    ]


def _candidates(layers: Sequence[Layer]) -> list[Layer]:
    """Return the layers whose weights may be kept as a difference, in the order in which they run."""
    return [layer for layer in shareable(layers) if can_have_form(layer)]


def _given_family(
    path: str, layers: Mapping[str, Sequence[Layer]], states: Mapping[str, Weights], base: Weights
) -> FineTunes:
    """Return the family of the models whose base the workload gives.

    Raises:
        InputError: the base fits no kernel of a model, or is too far from it.
    """
    bases: dict[str, Tensor] = {}
    base_of: dict[Use, str] = {}
    distances: dict[str, float] = {}
    for name, part in layers.items():
        wanted = _candidates(part)
        fitting = [each for each in wanted if _shape(base.get(each.parameter)) == each.shape]
        if sum(each.bytes for each in fitting) < _LEAST_COMMON * sum(each.bytes for each in wanted) or not fitting:
            raise InputError(
                f"query {name}: base: {path} is no ancestor of the model: by name and shape it has {len(fitting)} of"
                f" the {len(wanted)} kernels that could be kept as a difference"
            )
        pairs = [(states[name][each.parameter], base[each.parameter]) for each in fitting]
        distances[name] = distance = _distance(pairs)
        if not distance <= _NEAR:
            far = "no numbers" if math.isnan(distance) else f"{distance:.0%} of their own norm away"
            raise InputError(
                f"query {name}: base: {path} is no ancestor of the model: its kernels are {far}; those of a fine-tune"
                f" are less than {_NEAR:.0%} away, those of models that were trained apart about 140%; give the weights"
                " that the model was fine-tuned from, or leave base out"
            )
        for each in fitting:
            key = f"{path}/{each.parameter}"
            bases[key] = base[each.parameter].detach().float().contiguous()
            base_of[Use(name, each.parameter)] = key
    return FineTunes(path, True, distances, bases, base_of)


def _found_family(layers: Mapping[str, Sequence[Layer]], states: Mapping[str, Weights]) -> FineTunes:
    """Return the family of some models that are near each other; the mean of their kernels is the base."""
    held: dict[tuple[Kind, int], list[Use]] = {}
    for name, part in layers.items():
        for place, layer in _placed(_candidates(part)):
            held.setdefault(place, []).append(Use(name, layer.parameter))
    first = next(iter(layers))
    bases: dict[str, Tensor] = {}
    base_of: dict[Use, str] = {}
    for uses in held.values():
        if len(uses) < 2:
            continue
        key = f"{first}/{uses[0].parameter}"
        kernels = torch.stack([states[use.model][use.parameter] for use in uses])
        bases[key] = kernels.double().mean(0).float()
        base_of |= dict.fromkeys(uses, key)
    distances = {
        name: _distance(
            [(states[use.model][use.parameter], bases[key]) for use, key in base_of.items() if use.model == name]
        )
        for name in layers
    }
    return FineTunes(first, False, distances, bases, base_of)


def _clusters(layers: Mapping[str, Sequence[Layer]], states: Mapping[str, Weights]) -> list[list[str]]:
    """Return the sets of models that are connected by small distances, each with two models or more."""
    groups = [[name] for name in layers]
    for first, second in combinations(layers, 2):
        one, other = (next(group for group in groups if name in group) for name in (first, second))
        if one is not other and kernel_distance(layers, states, first, second) <= _NEAR:
            one += other
            groups.remove(other)
    # In the order of the models, whichever pair was found first.
    return [[name for name in layers if name in group] for group in groups if len(group) > 1]


def kernel_distance(
    layers: Mapping[str, Sequence[Layer]], states: Mapping[str, Weights], first: str, second: str
) -> float:
    """Return the norm of the difference of two models' kernels, divided by the mean norm; infinity for unlike models.

    The k-th kernel of a shape pairs with the k-th of the same shape. Models are unlike if less than half of the bytes
    of either are in such pairs.
    """
    one, other = (dict(_placed(_candidates(layers[name]))) for name in (first, second))
    # A list: the order of a set differs from process to process, and so would the rounding of the sums.
    common = [place for place in one if place in other]
    size = sum(one[place].bytes for place in common)
    for part in (one, other):
        if not common or size < _LEAST_COMMON * sum(layer.bytes for layer in part.values()):
            return math.inf
    return _distance(
        [(states[first][one[place].parameter], states[second][other[place].parameter]) for place in common]
    )


def _placed(layers: Sequence[Layer]) -> Iterator[tuple[tuple[Kind, int], Layer]]:
    """Yield each layer with its place: its kind, and how many layers of the kind run before it."""
    seen: Counter[Kind] = Counter()
    for layer in layers:
        yield (layer.kind, seen[layer.kind]), layer
        seen[layer.kind] += 1


def _distance(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Return the norm of the difference of all pairs of tensors, divided by the mean norm of both sides."""
    difference = first = second = 0.0
    for one, other in pairs:
        difference += float((one.double() - other.double()).square().sum())
        first += float(one.double().square().sum())
        second += float(other.double().square().sum())
    mean = (math.sqrt(first) + math.sqrt(second)) / 2
    return math.sqrt(difference) / mean if mean else 0.0


def _shape(value: Tensor | None) -> tuple[int, ...] | None:
    """Return the shape of a tensor; None without one."""
    return None if value is None else tuple(value.shape)
