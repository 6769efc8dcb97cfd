"""Sharing map, which says which weights of which models are one tensor."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from torch import nn

__all__ = ["SharingMap", "Slot", "Use", "bind", "own_parameters", "release"]


class Use(NamedTuple):
    """Name of one weight: the model's name, and the weight's name in the model's state dict."""

    model: str
    parameter: str


Slot = tuple[Use, ...]
"""Set of layer weights that hold one tensor: two or more uses, sorted."""


@dataclass(frozen=True)
class SharingMap:
    """Slots (sets of weights that hold one tensor) with no weight in common. A weight in no slot stays private.

    >>> a, b, c = Use("cars", "conv.weight"), Use("people", "conv.weight"), Use("people", "conv2.weight")
    >>> SharingMap().joined([(a, b)]).joined([(b, c)]).slots == ((a, b, c),)
    True
    """

    slots: tuple[Slot, ...] = ()

    def joined(self, slots: Iterable[Iterable[Use]]) -> SharingMap:
        """Return this sharing map with more slots (sets of weights). Slots with a weight in common become one slot."""
        parts: list[set[Use]] = [set(slot) for slot in self.slots]
        for slot in slots:
            new = set(slot)
            for part in [part for part in parts if part & new]:
                new |= part
                parts.remove(part)
            parts.append(new)
        return SharingMap(tuple(sorted(tuple(sorted(part)) for part in parts if len(part) > 1)))

    def without(self, uses: Collection[Use]) -> SharingMap:
        """Return this sharing map without the weights ``uses``, which become private to their models again."""
        kept = (tuple(use for use in slot if use not in uses) for slot in self.slots)
        return SharingMap(tuple(slot for slot in kept if len(slot) > 1))

    def of(self, models: Collection[str]) -> SharingMap:
        """Return the sharing map that is left of this map if only ``models`` share."""
        return self.without({use for use in self.uses if use.model not in models})

    @cached_property
    def uses(self) -> frozenset[Use]:
        """All weights that the sharing map shares."""
        return frozenset(use for slot in self.slots for use in slot)

    @property
    def models(self) -> frozenset[str]:
        """Names of the models that share at least one weight."""
        return frozenset(use.model for use in self.uses)

    def tied(self, models: Iterable[str]) -> frozenset[str]:
        """Return ``models`` and all models that shared weights connect with them, directly or through other models."""
        found = set(models)
        while more := {use.model for slot in self.slots if found & {u.model for u in slot} for use in slot} - found:
            found |= more
        return frozenset(found)

    def saved(self, size: Callable[[Use], int]) -> int:
        """Return the bytes that the sharing map frees: all copies but one of each shared weight.

        Args:
            size: function that returns the size of a weight in bytes.
        """
        return sum(size(slot[0]) * (len(slot) - 1) for slot in self.slots)


def bind(modules: Mapping[str, nn.Module], sharing: SharingMap) -> None:
    """Make the weights of each slot (set of weights that hold one tensor) one ``nn.Parameter``.

    The parameter of the first weight of a slot replaces the others.

    Args:
        modules: model name -> module, changed in place.
        sharing: the sharing map with the slots.
    """
    for slot in sharing.slots:
        parameter = modules[slot[0].model].get_parameter(slot[0].parameter)
        for use in slot[1:]:
            _replace(modules[use.model], use.parameter, parameter)


def own_parameters(modules: Mapping[str, nn.Module]) -> dict[Use, nn.Parameter]:
    """Return all parameters of the modules, each under all of its names, so that :func:`release` can restore them."""
    return {
        Use(model, name): parameter
        for model, module in modules.items()
        for name, parameter in module.named_parameters(remove_duplicate=False)
    }


def release(modules: Mapping[str, nn.Module], own: Mapping[Use, nn.Parameter]) -> None:
    """Undo :func:`bind`: put back the parameters that the modules had before, including ties inside a model.

    Args:
        modules: model name -> module, changed in place.
        own: result of :func:`own_parameters`, called before :func:`bind`.
    """
    for use, parameter in own.items():
        _set(modules[use.model], use.parameter, parameter)


def _replace(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Replace a module's parameter under all of its names: some layers of a model share a weight from the start."""
    old = module.get_parameter(name)
    for other, held in list(module.named_parameters(remove_duplicate=False)):
        if held is old:
            _set(module, other, parameter)


def _set(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Set the parameter that has the name ``name`` in a module's state dict."""
    path, _, own = name.rpartition(".")
    setattr(module.get_submodule(path), own, parameter)
