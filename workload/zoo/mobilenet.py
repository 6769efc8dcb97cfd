"""MobileNetV2 without its classifier, which embeds the appearance of an image as a vector."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.models import mobilenet_v2

from ...bundles.decode_specs import DecodeSpec, EmbeddingDecode
from ...bundles.manifest import InputSpec

__all__ = ["MobileNetV2Features", "mobilenet_v2_features"]


class MobileNetV2Features(nn.Module):
    """MobileNetV2 without its classifier: torchvision's ``mobilenet_v2().features``, averaged over the image.

    :func:`mobilenet_v2_features` makes one.
    """

    output_names: tuple[str, ...] = ("embedding",)

    def __init__(self) -> None:
        super().__init__()
        self.features: nn.Module = mobilenet_v2(weights=None).features

    def forward(self, image: Tensor) -> Tensor:
        """Compute MobileNetV2 embeddings ``[N, 1280]`` from images ``[N, 3, H, W]``, RGB, normalised as for
        ImageNet."""
        features: Tensor = self.features(image)
        return features.mean((2, 3))

    def decode(self, size: tuple[int, int]) -> tuple[DecodeSpec, dict[str, NDArray[np.float32]]]:
        """Return the spec of the decoder for MobileNetV2's embedding, and an empty mapping, as it needs no tensors.

        The spec is the same for every input ``size`` (height, width in pixels).
        """
        return EmbeddingDecode(), {}

    def input_defaults(self) -> InputSpec:
        """Return torchvision's preprocessing for MobileNetV2: 224 x 224 pixels, ImageNet statistics."""
        return InputSpec(size=(224, 224), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def mobilenet_v2_features() -> MobileNetV2Features:
    """Make a MobileNetV2 embedder with random weights; its state-dict keys are torchvision's ``features.*``."""
    return MobileNetV2Features()
