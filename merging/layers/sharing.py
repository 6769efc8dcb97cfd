"""The sharing map: which weights of which models are one tensor."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

__all__ = ["SharingMap", "Slot", "Use", "bind", "own_parameters", "release"]


class Use(NamedTuple):
    """A weight of a model, named as in the model's state dict."""

    model: str
    parameter: str


Slot = tuple[Use, ...]
"""The uses that hold one tensor: two or more, sorted."""


@dataclass(frozen=True)
class SharingMap:
    """Slots that have no use in common. A weight in no slot is its model's own.

    >>> a, b, c = Use("cars", "conv.weight"), Use("people", "conv.weight"), Use("people", "conv2.weight")
    >>> SharingMap().joined([(a, b)]).joined([(b, c)]).slots == ((a, b, c),)
    True
    """

    slots: tuple[Slot, ...] = ()

    def joined(self, slots: Iterable[Iterable[Use]]) -> SharingMap:
        """Return this map with more slots. Slots that have a use in common become one."""
        parts: list[set[Use]] = [set(slot) for slot in self.slots]
        for slot in slots:
            new = set(slot)
            for part in [part for part in parts if part & new]:
                new |= part
                parts.remove(part)
            parts.append(new)
        return SharingMap(tuple(sorted(tuple(sorted(part)) for part in parts if len(part) > 1)))

    def without(self, uses: Collection[Use]) -> SharingMap:
        """Return this map without ``uses``: these weights are their models' own again."""
        kept = (tuple(use for use in slot if use not in uses) for slot in self.slots)
        return SharingMap(tuple(slot for slot in kept if len(slot) > 1))

    def of(self, models: Collection[str]) -> SharingMap:
        """Return the part of this map that is left if only ``models`` share."""
        return self.without({use for use in self.uses if use.model not in models})

    @property
    def uses(self) -> frozenset[Use]:
        """All weights that are shared."""
        return frozenset(use for slot in self.slots for use in slot)

    @property
    def models(self) -> frozenset[str]:
        """Models that share at least one weight."""
        return frozenset(use.model for use in self.uses)

    def tied(self, models: Iterable[str]) -> frozenset[str]:
        """Return ``models`` and all models that are connected with them through shared weights, also indirectly."""
        found = set(models)
        while more := {use.model for slot in self.slots if found & {u.model for u in slot} for use in slot} - found:
            found |= more
        return frozenset(found)

    def saved(self, size: Callable[[Use], int]) -> int:
        """Return the bytes that sharing frees: every copy of a shared weight but one.

        Args:
            size: function that returns the bytes of a weight.
        """
        return sum(size(slot[0]) * (len(slot) - 1) for slot in self.slots)


def bind(modules: Mapping[str, nn.Module], sharing: SharingMap) -> None:
    """Make all uses of each slot one ``nn.Parameter``: the parameter of the slot's first use.

    Args:
        modules: model name -> module, changed in place.
        sharing: the slots.
    """
    for slot in sharing.slots:
        parameter = modules[slot[0].model].get_parameter(slot[0].parameter)
        for use in slot[1:]:
            _replace(modules[use.model], use.parameter, parameter)


def own_parameters(modules: Mapping[str, nn.Module]) -> dict[Use, nn.Parameter]:
    """Return every parameter under each of its names, so that :func:`release` can put it back."""
    return {
        Use(model, name): parameter
        for model, module in modules.items()
        for name, parameter in module.named_parameters(remove_duplicate=False)
    }


def release(modules: Mapping[str, nn.Module], own: Mapping[Use, nn.Parameter]) -> None:
    """Undo :func:`bind`: put back the parameters that the modules had before, including ties inside a model.

    Args:
        modules: model name -> module, changed in place.
        own: result of :func:`own_parameters` before :func:`bind`.
    """
    for use, parameter in own.items():
        _set(modules[use.model], use.parameter, parameter)


def _replace(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Replace a parameter by another under all of its names, because some layers of a model are tied from the start."""
    old = module.get_parameter(name)
    for other, held in list(module.named_parameters(remove_duplicate=False)):
        if held is old:
            _set(module, other, parameter)


def _set(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Set one parameter of a module by its name in the state dict."""
    path, _, own = name.rpartition(".")
    setattr(module.get_submodule(path), own, parameter)
