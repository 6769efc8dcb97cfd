"""Score of the original model itself with its weights rounded to int8: a yardstick for targets."""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import nn

from ..models.trace import LAYERS
from .exams import Exam, JudgedQuery, judge_query
from .running import outputs_of

__all__ = ["rounding_score"]


@torch.no_grad()
def rounding_score(held: JudgedQuery, exam: Exam, module: nn.Module, device: torch.device, limit: int) -> float:
    """Return the relative accuracy of the original model with the weights of its layers rounded to int8 per channel.

    A target above this score asks for more than common quantization keeps.

    Args:
        held: the query.
        exam: the images to judge by.
        module: stage of the original model, in eval mode; it is copied.
        device: device that the stage is on.
        limit: maximum number of the query's own images to judge by.
    """
    rounded = copy.deepcopy(module)
    for layer in rounded.modules():
        if isinstance(layer, LAYERS):
            weight = layer.weight
            scale = (weight.flatten(1).abs().amax(1) / 127).clamp(min=1e-12).view(-1, *[1] * (weight.ndim - 1))
            weight.copy_((weight / scale).round() * scale)
    return judge_query(held, exam, rounded, partial(outputs_of, module), device, limit).own.value
