"""Entry of the manifest for a kernel that is not stored as it is: the stored tensors that it is computed from."""

from __future__ import annotations

from math import prod
from typing import Annotated

from pydantic import Field

from .codes import Bits
from .stage_specs import Id
from .value import Value

__all__ = ["FormSpec"]


class FormSpec(Value):
    """Form of a float32 kernel: ``(base + codes * scale) * gain``, see :mod:`.codes`.

    Without a base it is a coded kernel. With a base, which several kernels may have in common, it is a difference. The
    base is a float32 tensor, or codes times a scale of their own.
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
    """Tensor with the base: float32 in the shape of the kernel, or packed codes, uint8; None for a coded kernel."""
    base_bits: Bits | None = None
    """Number of bits of one code of the base; None for a float32 base."""
    base_scale: Id | None = None
    """Tensor with the factor of each channel's codes in the base, float32; None for a float32 base."""
    gain: Id | None = None
    """Tensor with one more factor of each channel, float32, such as that of a folded BatchNorm; None if there is
    none."""
    block: Annotated[int, Field(ge=1)] = 1
    """Number of channels that are interleaved in the kernel; 1 if the elements of a channel lie side by side."""

    @property
    def bytes(self) -> int:
        """Bytes of the computed kernel."""
        return 4 * prod(self.shape)

    @property
    def parts(self) -> dict[str, str]:
        """Field of the form -> id of the stored tensor, for the tensors that the kernel is computed from."""
        found = {
            "base": self.base,
            "base_scale": self.base_scale,
            "codes": self.codes,
            "scale": self.scale,
            "gain": self.gain,
        }
        return {field: tensor for field, tensor in found.items() if tensor is not None}

    @property
    def base_parts(self) -> tuple[str, ...]:
        """Ids of the tensors that are the base, which other kernels may have in common with this one."""
        return tuple(tensor for tensor in (self.base, self.base_scale) if tensor is not None)

    @property
    def stored(self) -> tuple[str, ...]:
        """Ids of the tensors that the kernel is computed from."""
        return tuple(self.parts.values())
