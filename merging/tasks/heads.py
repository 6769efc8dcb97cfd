"""Raw outputs of all detector families in one form: scores and boxes, a row for each anchor or cell of an image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...bundles.decode_specs import CenterFaceDecode, SsdDecode, YoloDecode
from . import Outputs

__all__ = ["Heads", "heads_of"]


@dataclass(frozen=True)
class Heads:
    """Raw outputs of a detector for ``P`` anchors or cells in each of ``N`` images."""

    scores: Tensor
    """A detector's scores before the activation: S scores for each of P anchors or cells of N images, ``[N, P, S]``."""
    boxes: Tensor
    """Centre and size of a box relative to its anchor or cell, as the smooth L1 loss compares them: ``[N, P, 4]`` for
    P anchors or cells of N images."""
    activation: Literal["softmax", "sigmoid"]
    """Activation of a detector's scores. ``softmax``: the first score is the background's. ``sigmoid``: the scores are
    independent of each other."""
    gated: bool = False
    """Whether a detector's first score of an anchor is an objectness; without an object, the others mean nothing."""

    @property
    def probabilities(self) -> Tensor:
        """Scores after the activation, ``[N, P, S]``, or ``[N, P, S - 1]`` with an objectness, which is multiplied in.

        With a softmax, the first score is the background's.
        """
        if self.activation == "softmax":
            return self.scores.softmax(-1)
        values = self.scores.sigmoid()
        return values[..., :1] * values[..., 1:] if self.gated and values.shape[-1] > 1 else values

    @property
    def confidence(self) -> Tensor:
        """Probability that there is an object at each anchor or cell, ``[N, P]``."""
        if self.activation == "softmax":
            return 1 - self.scores.softmax(-1)[..., 0]
        return self.scores[..., 0].sigmoid() if self.gated else self.scores.sigmoid().amax(-1)


def heads_of(spec: SsdDecode | YoloDecode | CenterFaceDecode, names: Sequence[str]) -> Callable[[Outputs], Heads]:
    """Return a function that converts a detector's raw outputs to :class:`Heads`.

    Args:
        spec: settings for decoding the detector's outputs.
        names: names of the outputs, in order.
    """
    place = {name: index for index, name in enumerate(names)}
    if isinstance(spec, SsdDecode):
        return lambda outputs: _ssd(spec, outputs[place["logits"]], outputs[place["boxes"]])
    if isinstance(spec, YoloDecode):
        heads = [(place[head.output], len(head.anchors)) for head in spec.heads]
        return lambda outputs: _yolo([(outputs[index], anchors) for index, anchors in heads])
    # The fourth output, the landmarks, is not reported by any query.
    heatmap, scale, offset = place[spec.heatmap], place[spec.scale], place[spec.offset]
    return lambda outputs: _centerface(outputs[heatmap], outputs[scale], outputs[offset])


def _ssd(spec: SsdDecode, logits: Tensor, boxes: Tensor) -> Heads:
    """Return the raw outputs of SSD, SSDLite or RetinaNet as :class:`Heads`."""
    if spec.activation == "sigmoid" and spec.background:
        # The decoder ignores the background's score.
        logits = logits[..., 1:]
    return Heads(logits, boxes, spec.activation)


def _yolo(outputs: Sequence[tuple[Tensor, int]]) -> Heads:
    """Return the raw outputs of a YOLO detector, each given with its number of anchors, as :class:`Heads`."""
    rows = torch.cat([_rows(*each) for each in outputs], 1)
    # Decoded, the centre is a sigmoid in units of cells. The size is a logarithm already.
    boxes = torch.cat([rows[..., :2].sigmoid(), rows[..., 2:4]], -1)
    return Heads(rows[..., 4:], boxes, "sigmoid", gated=True)


def _rows(raw: Tensor, anchors: int) -> Tensor:
    """Reshape a YOLO output with A anchors from ``[N, A * (5 + classes), H, W]`` to ``[N, A * H * W, 5 + classes]``."""
    batch, channels, height, width = raw.shape
    values = channels // anchors
    return raw.reshape(batch, anchors, values, height, width).permute(0, 1, 3, 4, 2).reshape(batch, -1, values)


def _centerface(heatmap: Tensor, scale: Tensor, offset: Tensor) -> Heads:
    """Return the raw outputs of CenterFace as :class:`Heads`."""
    # The heatmap is the result of a sigmoid. Values that were rounded to 0 or 1 have no finite logit.
    scores, boxes = (value.flatten(2).transpose(1, 2) for value in (heatmap, torch.cat([offset, scale], 1)))
    return Heads(scores.clamp(1e-6, 1 - 1e-6).logit(), boxes, "sigmoid")
