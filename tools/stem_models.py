"""Second model on the street example's person detector: it tells a crowded junction from a quiet one.

Its first layers are the detector's, frozen while the others were trained on the detector's own answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import av
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gemel.frames.preprocess import preprocess
from gemel.workload.zoo.ssdlite import SsdMobileNetV2, ssdlite_mobilenet_v2

__all__ = ["Crowd", "crowd", "train_crowd"]

FROZEN = 14
"""Number of the detector's blocks that the crowd classifier has in common with it, of 19."""
_THRESHOLD = 0.3
"""Score above which an anchor counts as a person."""


class Crowd(nn.Module):
    """MobileNetV2 of the person detector with a classifier of two classes, quiet and crowded."""

    def __init__(self) -> None:
        super().__init__()
        self.features = ssdlite_mobilenet_v2(num_classes=1).features
        self.head = nn.Linear(1280, 2)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits ``[N, 2]`` of quiet and crowded, for images ``[N, 3, 300, 300]`` from -1 to 1."""
        features: Tensor = self.features(image)
        logits: Tensor = self.head(features.mean((2, 3)))
        return logits


def crowd() -> Crowd:
    """Make a crowd classifier with random weights."""
    return Crowd()


def train_crowd(people: dict[str, Tensor], video: Path, frames: int = 160, epochs: int = 3) -> Crowd:
    """Train a crowd classifier on the detector's answers.

    A frame is crowded if the detector scores more anchors as people than in the median frame.

    Args:
        people: state dict of the detector.
        video: recording of the junction.
        frames: number of frames to use, evenly spread.
        epochs: number of passes over the frames.
    """
    torch.manual_seed(0)
    detector = ssdlite_mobilenet_v2(num_classes=1).eval()
    detector.load_state_dict(people)
    images = _images(video, frames, detector)
    with torch.no_grad():
        scores = [detector(image)[0].sigmoid()[0, :, 1] for image in images]
        counts = torch.tensor([int((score > _THRESHOLD).sum()) for score in scores])
    labels = (counts > counts.median()).long()
    model = Crowd()
    model.features.load_state_dict(detector.features.state_dict())
    first, last = model.features[:FROZEN].eval().requires_grad_(False), model.features[FROZEN:]
    with torch.no_grad():
        inputs = torch.cat([first(image) for image in images])
    optimizer = torch.optim.Adam([*last.parameters(), *model.head.parameters()], lr=3e-4)
    for _ in range(epochs):
        last.train()
        for batch in torch.randperm(len(inputs)).split(16):
            loss = F.cross_entropy(model.head(last(inputs[batch]).mean((2, 3))), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def _images(video: Path, count: int, detector: SsdMobileNetV2) -> Sequence[Tensor]:
    """Return frames of a recording, evenly spread, as the detector takes them."""
    with av.open(str(video)) as container:
        pictures = [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)]
    spec = detector.input_defaults()
    return [torch.from_numpy(preprocess(picture, spec)[0]) for picture in pictures[:: max(1, len(pictures) // count)]]
