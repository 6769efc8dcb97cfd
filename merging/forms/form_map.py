"""Form map, which says which weights are kept as codes, alone or as the difference to a base, and what that saves."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from ..layers.layers import Layer
from ..layers.problem import Problem
from ..layers.sharing import SharingMap, Slot, Use
from .quantize import coded_bytes

__all__ = ["NO_FORMS", "Form", "FormMap", "can_have_form", "saved_bytes"]

_LEAST_BYTES = 2048
"""Minimum size in bytes of a kernel that gets a form. Smaller kernels save less than their scales and nodes cost."""


@dataclass(frozen=True)
class Form:
    """Form of one weight: codes of some bits, as the weight itself or as its difference to a base."""

    bits: int
    """Bits of one code: 1, 2, 4 or 8. With a base also 0: the weight is the base."""
    base: str | None = None
    """Name of the base, a tensor that the weights of several models refer to; None for the weight's own codes."""
    base_bits: int | None = None
    """Bits of one code of the base; None for a float32 base, and without a base."""


@dataclass(frozen=True)
class FormMap:
    """Weights with their forms, sorted. A weight that is not listed is kept as it is.

    >>> conv = Use("cars", "conv.weight")
    >>> FormMap().joined({conv: Form(8)}).joined({conv: Form(4)}).forms[0][1].bits
    4
    """

    forms: tuple[tuple[Use, Form], ...] = ()

    @cached_property
    def by_use(self) -> Mapping[Use, Form]:
        """Weight -> form, for the weights that have a form."""
        return dict(self.forms)

    @property
    def models(self) -> frozenset[str]:
        """Names of the models with a weight that has a form."""
        return frozenset(use.model for use, _ in self.forms)

    @property
    def uses(self) -> frozenset[Use]:
        """All weights that have a form."""
        return frozenset(self.by_use)

    def joined(self, forms: FormMap | Mapping[Use, Form]) -> FormMap:
        """Return this form map with the forms of another one, which replace forms of the same weights."""
        new = forms.by_use if isinstance(forms, FormMap) else forms
        return FormMap(tuple(sorted({**self.by_use, **new}.items(), key=lambda item: item[0])))

    def of(self, models: Collection[str]) -> FormMap:
        """Return the forms of the weights of some models."""
        return FormMap(tuple((use, form) for use, form in self.forms if use.model in models))

    def without(self, models: Collection[str]) -> FormMap:
        """Return the forms of the weights of all models but some."""
        return FormMap(tuple((use, form) for use, form in self.forms if use.model not in models))

    def bytes(self, layers: Iterable[Layer]) -> int:
        """Return the bytes of the codes and scales of one model's weights, without bases.

        Args:
            layers: layers of the model.
        """
        shapes = {Use(layer.model, layer.parameter): layer.shape for layer in layers}
        return sum(coded_bytes(shapes[use], form.bits) for use, form in self.forms)

    @property
    def differences(self) -> FormMap:
        """Forms that have a base."""
        return FormMap(tuple((use, form) for use, form in self.forms if form.base is not None))

    @property
    def plain_differences(self) -> FormMap:
        """Forms that have a base, as if all bases were float32."""
        return FormMap(tuple((use, replace(form, base_bits=None)) for use, form in self.differences.forms))

    @property
    def own(self) -> FormMap:
        """Forms that have no base."""
        return FormMap(tuple((use, form) for use, form in self.forms if form.base is None))

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Sets of weights that are one base, because their forms have 0 bits: two or more weights in each set."""
        held: dict[str, list[Use]] = {}
        for use, form in self.forms:
            if form.base is not None and not form.bits:
                held.setdefault(form.base, []).append(use)
        return tuple(tuple(uses) for uses in held.values() if len(uses) > 1)


NO_FORMS = FormMap()
"""Form map in which every weight is kept as it is."""


def can_have_form(layer: Layer) -> bool:
    """Check whether a layer's weight is worth a form.

    Depthwise kernels and other small ones are not: the compiler folds their BatchNorms into them. The first dimension
    of a transposed convolution's kernel is not the output channels, which the scales belong to.
    """
    return layer.bytes >= _LEAST_BYTES and layer.shape[1:2] != (1,) and not layer.definition.startswith("ConvTranspose")


def saved_bytes(problem: Problem, sharing: SharingMap, forms: FormMap = NO_FORMS) -> int:
    """Return the bytes of weights that sharing and forms save together, relative to models as they are.

    A base counts once, however many weights refer to it. Codes of a tensor that several layers share count once.
    """
    shapes = {Use(name, layer.parameter): layer.shape for name, part in problem.layers.items() for layer in part}
    held, bases = 0, dict[str, int]()
    for unit in _units(shapes, sharing):
        form = forms.by_use.get(unit[0])
        if form is None:
            held += problem.size(unit[0])
            continue
        held += coded_bytes(shapes[unit[0]], form.bits)
        if form.base is not None:
            plain, bits = problem.size(unit[0]), form.base_bits
            bases[form.base] = plain if bits is None else coded_bytes(shapes[unit[0]], bits)
    return problem.bytes - held - sum(bases.values())


def _units(uses: Iterable[Use], sharing: SharingMap) -> Iterator[Slot]:
    """Yield every tensor of a workload as the set of weights that hold it, private weights included."""
    yield from sharing.slots
    for use in uses:
        if use not in sharing.uses:
            yield (use,)
