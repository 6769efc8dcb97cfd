"""Form of one kernel as arrays, before it is stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .codes import Bits, pack_codes, restore
from .form_specs import FormSpec

__all__ = ["KernelForm"]

_Float = NDArray[np.float32]


@dataclass(frozen=True)
class KernelForm:
    """Form of a kernel: ``(base + codes * scale) * gain``, see :mod:`.codes`."""

    codes: NDArray[np.int8]
    """Codes with the shape of the kernel."""
    bits: Bits
    """Number of bits of one code, so that all codes fill whole bytes."""
    scale: _Float
    """Factor of each channel's codes."""
    base: _Float | NDArray[np.int8] | None
    """Array with the shape of the kernel: float32, or codes if ``base_scale`` is given; None for a coded kernel."""
    base_scale: _Float | None = None
    """Factor of each channel's codes in the base; None for a float32 base."""
    base_bits: Bits | None = None
    """Number of bits of one code of the base, so that all codes fill whole bytes; None for a float32 base."""
    gain: _Float | None = None
    """One more factor of each channel, such as that of a folded BatchNorm; None if there is none."""
    block: int = 1
    """Number of channels that are interleaved; 1 if the elements of a channel lie side by side."""

    @property
    def packed(self) -> NDArray[np.uint8]:
        """Codes as bytes."""
        return pack_codes(self.codes, self.bits)

    @property
    def packed_base(self) -> NDArray[Any] | None:
        """The base as it is stored: float32, or codes as bytes, uint8; None for a coded kernel."""
        if self.base is None or self.base_bits is None:
            return self.base
        return pack_codes(self.base, self.base_bits)

    def kernel(self) -> _Float:
        """Return the kernel."""
        made = np.empty(self.codes.shape, np.float32)
        restore(
            *(made, self.packed, self.scale, self.bits),
            base=self.packed_base,
            base_scale=self.base_scale,
            base_bits=self.base_bits,
            gain=self.gain,
            block=self.block,
        )
        return made

    def transposed(self) -> KernelForm:
        """Return the form of the transpose of a matrix whose channels are its rows."""
        base = None if self.base is None else np.ascontiguousarray(self.base.T)
        codes = np.ascontiguousarray(self.codes.T)
        return replace(self, codes=codes, base=base, block=len(self.scale))

    def stored(self, put: Callable[[NDArray[Any]], str]) -> FormSpec:
        """Return the entry of the form.

        Args:
            put: function that stores an array as a tensor, and returns the tensor's id.
        """
        base, base_scale, gain = (
            None if each is None else put(each) for each in (self.packed_base, self.base_scale, self.gain)
        )
        return FormSpec(
            shape=self.codes.shape,
            codes=put(self.packed),
            scale=put(self.scale),
            bits=self.bits,
            base=base,
            base_bits=self.base_bits,
            base_scale=base_scale,
            gain=gain,
            block=self.block,
        )
