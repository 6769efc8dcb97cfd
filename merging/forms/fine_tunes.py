"""Fine-tunes: models that were fine-tuned from one checkpoint, and the base to which their weights are near.

The ancestor is given in the workload, or the models are found by their weights. Kernels of fine-tunes lie near each
other, while kernels of models that were trained apart are as far from each other as random directions: the norm of
their difference is about 1.4 times their own norm. The base is the mean of the models in either case, in codes of 8
bits. A kernel that is equal in all models (a frozen layer) is its own base, in float32.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from ...bundles.codes import BASE_BITS
from ...errors import InputError
from ..layers.layers import Kind, Layer, shareable
from ..layers.sharing import Use
from .form_map import can_have_form
from .quantize import Base, materialize, quantize_kernel

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
    """Whether the workload gives the common ancestor."""
    distances: Mapping[str, float]
    """Model name -> norm of the difference of its kernels to their bases, divided by the norm of the kernels."""
    bases: Mapping[str, Base]
    """Name of a base -> base, in the shape of the kernel."""
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
        ancestor = self.name if self.given else "one checkpoint"
        where = f"{near:.0%} to {far:.0%} away from the mean of them" if len(self.members) > 1 else f"{far:.0%} away"
        return f"{', '.join(self.members)}: fine-tunes of {ancestor}, {where}"


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
    held: dict[str, list[Use]] = {}
    for name, part in layers.items():
        wanted = _candidates(part)
        fitting = [each for each in wanted if _shape(base.get(each.parameter)) == each.shape]
        if sum(each.bytes for each in fitting) < _LEAST_COMMON * sum(each.bytes for each in wanted) or not fitting:
            raise InputError(
                f"query {name}: base: {path} is no ancestor of the model: by name and shape it has {len(fitting)} of"
                f" the {len(wanted)} kernels that could be kept as a difference"
            )
        distance = _distance([(states[name][each.parameter], base[each.parameter]) for each in fitting])
        if not distance <= _NEAR:
            far = "no numbers" if math.isnan(distance) else f"{distance:.0%} of their own norm away"
            raise InputError(
                f"query {name}: base: {path} is no ancestor of the model: its kernels are {far}; those of a fine-tune"
                f" are less than {_NEAR:.0%} away, those of models that were trained apart about 140%; give the weights"
                " that the model was fine-tuned from, or leave base out"
            )
        for each in fitting:
            held.setdefault(each.parameter, []).append(Use(name, each.parameter))
    return _family(path, True, held.values(), states, base)


def _found_family(layers: Mapping[str, Sequence[Layer]], states: Mapping[str, Weights]) -> FineTunes:
    """Return the family of some models that are near each other; the mean of their kernels is the base."""
    held: dict[tuple[Kind, int], list[Use]] = {}
    for name, part in layers.items():
        for place, layer in _placed(_candidates(part)):
            held.setdefault(place, []).append(Use(name, layer.parameter))
    return _family(next(iter(layers)), False, [uses for uses in held.values() if len(uses) > 1], states)


def _family(
    name: str, given: bool, held: Iterable[Sequence[Use]], states: Mapping[str, Weights], base: Weights | None = None
) -> FineTunes:
    """Return the family in which the base of each kernel is the mean of the members that have it, in 8-bit codes.

    The mean is nearer to the members than any other base, their ancestor included: fine-tunes have moved together. A
    kernel that is equal in all members is its own base, in float32. The given base is taken, in float32, for a kernel
    that one member alone has: with a base in codes its difference would be compression under another name.

    Args:
        name: name of the family.
        given: whether the workload gives the base.
        held: sets of weights that have one base.
        states: model name -> weights.
        base: weights of the given base.
    """
    bases: dict[str, Base] = {}
    base_of: dict[Use, str] = {}
    for uses in held:
        key = f"{name}/{uses[0].parameter}"
        kernels = torch.stack([states[use.model][use.parameter] for use in uses])
        if len(uses) == 1 and base is not None:
            kernels = base[uses[0].parameter][None]
        if bool((kernels == kernels[0]).all()):
            bases[key] = Base(kernels[0].float().contiguous())
        else:
            coded = quantize_kernel(kernels.double().mean(0).float(), BASE_BITS)
            bases[key] = Base(materialize(coded), coded)
        base_of |= dict.fromkeys(uses, key)
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {use.model: [] for use in base_of}
    for use, key in base_of.items():
        pairs[use.model].append((states[use.model][use.parameter], bases[key].kernel))
    return FineTunes(name, given, {model: _distance(part) for model, part in pairs.items()}, bases, base_of)


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
