"""Replacement of frozen BatchNorms by BatchNorm2d, which exports as one node that keeps its weights' names.

Torchvision, Hugging Face and most detectors of the DETR family have a class FrozenBatchNorm2d of their own each.
Exported, it is half a dozen nodes that compute scale and shift anew in every run and are not folded into convolutions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["thaw_batch_norm"]

_TENSORS = ("weight", "bias", "running_mean", "running_var")
_EPS = 1e-5
"""Epsilon of classes that do not keep it as an attribute ``eps``."""


def thaw_batch_norm(model: nn.Module) -> nn.Module:
    """Replace every FrozenBatchNorm2d in place by an eval-mode BatchNorm2d with the same eps and tensors.

    A layer counts as one if its class is called so, whichever library it is from, and if the BatchNorm2d gives the same
    values. Names and tensors stay, and so do results, up to rounding.

    Returns:
        The same model.
    """
    replaced: dict[nn.Module, nn.Module] = {}
    for parent in list(model.modules()):
        # Not named_children(), which leaves out the second name of a layer that has two.
        for name, child in list(parent._modules.items()):
            if child is not None and type(child).__name__.endswith("FrozenBatchNorm2d"):
                if child not in replaced:
                    replaced[child] = _thawed(child)
                setattr(parent, name, replaced[child])
    return model


def _thawed(frozen: nn.Module) -> nn.Module:
    """Return a BatchNorm2d with the tensors of a frozen layer, or the layer itself if that would compute otherwise."""
    found = [getattr(frozen, name, None) for name in _TENSORS]
    tensors = [tensor for tensor in found if isinstance(tensor, Tensor) and tensor.ndim == 1]
    if len(tensors) < len(_TENSORS):
        return frozen
    weight, bias, mean, variance = tensors
    layer = nn.BatchNorm2d(len(weight), eps=getattr(frozen, "eps", _EPS))
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.bias = nn.Parameter(bias, requires_grad=False)
    layer.running_mean, layer.running_var = mean, variance
    # A frozen layer has no step counter. Without one here, the state dict keeps its keys.
    layer.num_batches_tracked = None
    spread = (variance + layer.eps).sqrt()
    image = torch.stack((mean - spread, mean + spread), dim=-1)[None, :, None, :]
    with torch.no_grad():
        # Tensors on the meta device, of a model that is only looked at, have no values to compare.
        alike = image.is_meta or torch.allclose(frozen(image), layer.eval()(image), rtol=1e-4, atol=1e-5)
    return layer if alike else frozen
