"""Raw outputs of detectors of every family in one form: scores and boxes, a row for each place an object may be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...bundles.manifest import CenterFaceDecode, SsdDecode, YoloDecode
from . import Outputs

__all__ = ["Heads", "heads_of"]


@dataclass(frozen=True)
class Heads:
    """What a detector says of ``P`` places (anchors or cells) in each of ``N`` images."""

    scores: Tensor
    """``[N, P, S]``, before the activation."""
    boxes: Tensor
    """``[N, P, 4]``: centre and size relative to the place, as smooth L1 is taken of them."""
    activation: Literal["softmax", "sigmoid"]
    """softmax: the first score is the background's. sigmoid: each score stands alone."""
    gated: bool = False
    """The first score says whether there is an object; the others mean nothing where there is none."""

    @property
    def confidence(self) -> Tensor:
        """How surely there is an object, ``[N, P]``."""
        if self.activation == "softmax":
            return 1 - self.scores.softmax(-1)[..., 0]
        return self.scores[..., 0].sigmoid() if self.gated else self.scores.sigmoid().amax(-1)


def heads_of(spec: SsdDecode | YoloDecode | CenterFaceDecode, names: Sequence[str]) -> Callable[[Outputs], Heads]:
    """What reads the outputs called ``names``."""
    place = {name: index for index, name in enumerate(names)}
    if isinstance(spec, SsdDecode):
        return lambda outputs: _ssd(spec, outputs[place["logits"]], outputs[place["boxes"]])
    if isinstance(spec, YoloDecode):
        heads = [(place[head.output], len(head.anchors)) for head in spec.heads]
        return lambda outputs: _yolo([(outputs[index], anchors) for index, anchors in heads])
    # The landmarks, a fourth output, are nothing that a query reports.
    heatmap, scale, offset = place[spec.heatmap], place[spec.scale], place[spec.offset]
    return lambda outputs: _centerface(outputs[heatmap], outputs[scale], outputs[offset])


def _ssd(spec: SsdDecode, logits: Tensor, boxes: Tensor) -> Heads:
    if spec.activation == "sigmoid" and spec.background:
        # Decoding never looks at the background's own score.
        logits = logits[..., 1:]
    return Heads(logits, boxes, spec.activation)


def _yolo(outputs: Sequence[tuple[Tensor, int]]) -> Heads:
    rows = torch.cat([_rows(*each) for each in outputs], 1)
    # The centre is a sigmoid, in cells; the size a logarithm.
    boxes = torch.cat([rows[..., :2].sigmoid(), rows[..., 2:4]], -1)
    return Heads(rows[..., 4:], boxes, "sigmoid", gated=True)


def _rows(raw: Tensor, anchors: int) -> Tensor:
    """``[N, A * (5 + classes), H, W]`` to ``[N, A * H * W, 5 + classes]``."""
    batch, channels, height, width = raw.shape
    values = channels // anchors
    return raw.reshape(batch, anchors, values, height, width).permute(0, 1, 3, 4, 2).reshape(batch, -1, values)


def _centerface(heatmap: Tensor, scale: Tensor, offset: Tensor) -> Heads:
    # The heatmap has been through its sigmoid; rounding takes it to 0 and 1, where there is no way back.
    scores, boxes = (value.flatten(2).transpose(1, 2) for value in (heatmap, torch.cat([offset, scale], 1)))
    return Heads(scores.clamp(1e-6, 1 - 1e-6).logit(), boxes, "sigmoid")
