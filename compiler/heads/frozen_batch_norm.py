"""Replacement of FrozenBatchNorm2d by BatchNorm2d, which exports as one node that keeps its weights' names."""

from __future__ import annotations

from torch import nn
from torchvision.ops import FrozenBatchNorm2d

__all__ = ["thaw_batch_norm"]


def thaw_batch_norm(model: nn.Module) -> nn.Module:
    """Replace every FrozenBatchNorm2d in place by an eval-mode BatchNorm2d with the same eps and tensors.

    Names and tensors stay, and so do results, up to rounding.

    Returns:
        The same model.
    """
    replaced: dict[nn.Module, nn.Module] = {}
    for parent in list(model.modules()):
        # Not named_children(), which leaves out the second name of a layer that has two.
        for name, child in list(parent._modules.items()):
            if isinstance(child, FrozenBatchNorm2d):
                if child not in replaced:
                    replaced[child] = _thawed(child)
                setattr(parent, name, replaced[child])
    return model


def _thawed(frozen: FrozenBatchNorm2d) -> nn.BatchNorm2d:
    """Return a BatchNorm2d with the tensors of a FrozenBatchNorm2d."""
    layer = nn.BatchNorm2d(len(frozen.weight), eps=frozen.eps)
    layer.weight = nn.Parameter(frozen.weight, requires_grad=False)
    layer.bias = nn.Parameter(frozen.bias, requires_grad=False)
    layer.running_mean = frozen.running_mean
    layer.running_var = frozen.running_var
    # A frozen layer has no step counter. Without one here, the state dict keeps its keys.
    layer.num_batches_tracked = None
    return layer.eval()
