"""BatchNorms that are folded into the convolutions before them, so that judging runs in less time.

On a CPU, a BatchNorm of its own reads and writes all of a convolution's output once more. Folded, a MobileNetV2 at 224
x 224 pixels runs in 0.55 of the time, a MobileNetV3-Large in 0.72, a ResNet-18 in 0.94 (one thread).
"""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ...compiler.heads import as_tuple
from ..models.trace import hooked

__all__ = ["folded"]

_CONVOLUTIONS = {nn.Conv1d, nn.Conv2d, nn.Conv3d}
_NORMS = {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d}
_NEAR = 1e-3
"""Maximum difference of an output of the folded copy, as a fraction of the output's largest value."""


# In inference mode, tensors have no versions, which tell that an activation has changed one in place.
@torch.inference_mode(False)
@torch.no_grad()
def folded(module: nn.Module, image: Tensor) -> nn.Module:
    """Return a copy of a module with each BatchNorm folded into the convolution whose output it takes.

    Which belong together is seen in a run. That something else takes a convolution's output as well is not seen;
    therefore the copy's outputs are compared, and the module itself is returned if they differ.

    Args:
        module: the module, in eval mode.
        image: input to compare the outputs on, ``[B, C, H, W]``.
    """
    image = image.clone()
    pairs, outputs = _pairs(module, image)
    if not pairs:
        return module
    found = copy.deepcopy(module)
    for first, second in pairs.items():
        convolution: Any = found.get_submodule(first)
        norm: Any = found.get_submodule(second)
        found.set_submodule(first, fuse_conv_bn_eval(convolution, norm))
        found.set_submodule(second, nn.Identity())
    try:
        others = as_tuple(found(image))
    except (AttributeError, TypeError, RuntimeError):
        # The model does more with its BatchNorms than to call them.
        return module
    return found if all(map(_are_near, outputs, others)) else module


def _pairs(module: nn.Module, image: Tensor) -> tuple[dict[str, str], tuple[Tensor, ...]]:
    """Return convolution -> BatchNorm that takes its output, by name, each run once; and the outputs of the run."""
    names = {
        layer: name
        for name, layer in module.named_modules()
        if type(layer) in _CONVOLUTIONS or (type(layer) in _NORMS and layer.running_var is not None)
    }
    runs, made, pairs = Counter[str](), dict[int, tuple[str, Tensor, int]](), dict[str, str]()

    def record(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        runs[names[layer]] += 1
        before = made.get(id(inputs[0]))
        if type(layer) in _CONVOLUTIONS:
            # The tensor is kept, so that no other gets its identity.
            made[id(output)] = names[layer], output, output._version
        elif before is not None and before[2] == inputs[0]._version:
            pairs[before[0]] = names[layer]

    with hooked(names, record):
        outputs = as_tuple(module(image))
    return {first: second for first, second in pairs.items() if runs[first] == runs[second] == 1}, outputs


def _are_near(output: Tensor, other: Tensor) -> bool:
    """Check whether an output of the folded copy is as good as that of the module itself."""
    return output.shape == other.shape and bool((output - other).abs().max() <= _NEAR * output.abs().max())
