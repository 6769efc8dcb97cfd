"""Give weights of PyTorch modules the values that their forms stand for, also while they are trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..layers.sharing import Use
from .form_map import FormMap
from .quantize import Base, Coded, materialize, quantize_kernel

__all__ = ["FormCoder"]


class FormCoder:
    """Weights with forms: the values that the forms stand for in the modules, and beside them the plain values.

    Training with the coded values and stepping the plain ones is the straight-through estimator, as in BinaryConnect
    (Courbariaux et al., 2015).

    Args:
        modules: model name -> module. Its weights with a form get their coded values at once.
        forms: the forms. A parameter that several weights share is coded once.
        bases: name of a base -> base.
    """

    def __init__(self, modules: Mapping[str, nn.Module], forms: FormMap, bases: Mapping[str, Base]) -> None:
        self.codes: dict[Use, Coded] = {}
        """Weight -> codes of its form, for all forms but those of 0 bits."""
        self._plain: dict[nn.Parameter, Tensor] = {}
        self._uses: dict[nn.Parameter, list[Use]] = {}
        self._forms: dict[nn.Parameter, tuple[int, Tensor | None]] = {}
        for use, form in forms.forms:
            weight = modules[use.model].get_parameter(use.parameter)
            self._uses.setdefault(weight, []).append(use)
            self._forms[weight] = form.bits, None if form.base is None else bases[form.base].kernel
        self._encode()

    @torch.no_grad()
    def _encode(self) -> None:
        """Remember the plain values of all weights with a form, and put coded values in their place."""
        for weight, (bits, base) in self._forms.items():
            self._plain[weight] = own = weight.detach().clone()
            if not bits:
                assert base is not None
                weight.copy_(base)
                continue
            # On the CPU, where each operation is sure to be rounded by itself.
            own = own.cpu()
            known = self.codes.get(self._uses[weight][0])
            coded = quantize_kernel(
                own if base is None else own - base, bits, near=None if known is None else known.scale
            )
            weight.copy_(materialize(coded, base))
            self.codes |= dict.fromkeys(self._uses[weight], coded)

    @contextmanager
    def plain(self) -> Iterator[None]:
        """Put the plain values back for a ``with`` block, which may change them; then code them again."""
        with torch.no_grad():
            for weight, value in self._plain.items():
                weight.copy_(value)
        yield
        self._encode()
