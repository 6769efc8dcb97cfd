"""Small networks whose exports may depend on more than the module, for tests of what is exported once."""

from __future__ import annotations

import torch
from tiny_models import TinyNet
from torch import Tensor, nn


class Scaled(TinyNet):
    """TinyNet whose scores are multiplied by a number that no attribute of the module has."""

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image) * scales[-1]


class Undefined(TinyNet):
    """TinyNet whose scores are no numbers."""

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image) * float("nan")


class TwoHeads(nn.Module):
    """Module with tied weights, a constant tensor and a buffer outside the state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.register_buffer("shift", torch.arange(4.0), persistent=False)
        self.factors = torch.tensor([1.0, 2.0, 3.0, 4.0])

    def forward(self, image: Tensor) -> Tensor:
        x = self.body(image).mean((2, 3)) * self.factors + self.shift
        scores: Tensor = self.second(torch.relu(self.first(x)))
        return scores


scales = [1.0]
"""Factor of :class:`Scaled`, as the last item."""
