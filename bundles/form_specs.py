"""Entry of the manifest for a kernel that is not stored as it is: the stored tensors that it is computed from."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from .codes import Bits
from .stage_specs import Id
from .value import Value

__all__ = ["FormSpec"]


class FormSpec(Value):
    """Form of a float32 kernel: ``(base + codes * scale) * gain``, see :mod:`.codes`.

    Without a base it is a coded kernel. With a base, which several kernels may have in common, it is a difference.
    """

    shape: tuple[Annotated[int, Field(ge=1)], ...]
    """Shape of the kernel."""
    codes: Id
    """Tensor with the packed codes of all elements, uint8."""
    scale: Id
    """Tensor with the factor of each channel's codes, float32."""
    bits: Bits
    """Number of bits of one code."""
    base: Id | None = None
    """Tensor with the shape of the kernel, float32; None for a coded kernel."""
    gain: Id | None = None
    """Tensor with one more factor of each channel, float32, such as that of a folded BatchNorm; None if there is
    none."""
    block: Annotated[int, Field(ge=1)] = 1
    """Number of channels that are interleaved in the kernel; 1 if the elements of a channel lie side by side."""

    @property
    def stored(self) -> tuple[str, ...]:
        """Ids of the tensors that the kernel is computed from."""
        return tuple(each for each in (self.base, self.codes, self.scale, self.gain) if each is not None)
