"""Architectures for tools/reproduce_paper.py: layers and bytes from gemel's analysis, times from the paper's slides.

The slides give load and run times of five models. Times of other models are estimated from these five: load time from
bytes and number of tensors, run time from number of layers and multiplications. Both are least-squares fits without
negative terms.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models

from gemel.compiler.heads import Cut, cut
from gemel.merging.analysis.analysis import sizes_of
from gemel.merging.layers.layers import Layer
from gemel.merging.models.networks import Network
from gemel.workload.zoo.darknet import yolov3, yolov3_tiny

__all__ = ["ARCHITECTURES", "SLIDES", "Architecture", "Fit", "measure"]

SLIDES = {
    "yolov3": (49.5, 17.0),
    "resnet152": (73.3, 24.8),
    "resnet50": (27.1, 8.4),
    "vgg16": (72.2, 2.1),
    "tiny-yolov3": (6.7, 3.0),
}
"""Model -> milliseconds to load the model and to run it on the device of the Gemel paper."""

_detection = models.detection
_DETECTORS: dict[str, Callable[[], nn.Module]] = {
    "yolov3": yolov3,
    "tiny-yolov3": yolov3_tiny,
    "ssd-vgg16": lambda: _detection.ssd300_vgg16(weights=None, weights_backbone=None),
    "ssdlite": lambda: _detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None),
    "frcnn-r50": lambda: _detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None),
}
_CLASSIFIERS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": models.resnet18,
    "resnet50": models.resnet50,
    "resnet101": models.resnet101,
    "resnet152": models.resnet152,
    "vgg16": lambda: models.vgg16(init_weights=False),
    "vgg19": lambda: models.vgg19(init_weights=False),
    "alexnet": models.alexnet,
    "inception": lambda: models.inception_v3(aux_logits=False, init_weights=False),
    "mobilenet": models.mobilenet_v3_large,
}
ARCHITECTURES = (*_DETECTORS, *_CLASSIFIERS)
_ANCHORED = ("ssd-vgg16", "ssdlite", "frcnn-r50")
"""Detectors that cannot be built on PyTorch's meta device, because they compute their anchors."""


@dataclass(frozen=True)
class Architecture:
    """Architecture of a model without weights: its bytes, tensors, layers and multiplications."""

    name: str
    bytes: int
    """Bytes of all parameters and buffers of the model in fp32."""
    tensors: int
    layers: tuple[Layer, ...]
    """Convolutions and linear layers of the model in execution order."""
    gmacs: float
    """Billions (10^9) of multiplications per frame at the model's default input size."""


def measure(names: Iterable[str]) -> dict[str, Architecture]:
    """Build each named architecture, and count its bytes, layers and multiplications.

    Faster R-CNN takes half a minute, most others less than a second.
    """
    found = {}
    for name in names:
        task, build = ("detection", _DETECTORS[name]) if name in _DETECTORS else ("classification", _CLASSIFIERS[name])
        with warnings.catch_warnings(), nullcontext() if name in _ANCHORED else torch.device("meta"):
            warnings.simplefilter("ignore")
            network = Network(name, (), cut(build(), task))
            seen = sizes_of(network)
            tensors = len(network.module.state_dict())
            found[name] = Architecture(name, seen.bytes, tensors, seen.layers, _gmacs(network.cut))
    return found


def _gmacs(parts: Cut) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for stage in parts.stages.values():
            one = [value[:1] if 0 in stage.free.get(name, ()) else value for name, value in stage.inputs.items()]
            stage.module(*one)
    return float(counter.get_total_flops()) / 2e9


@dataclass(frozen=True)
class Fit:
    """Linear estimate of a model's load time (from bytes, tensors) and run time (from layers, multiplications)."""

    ms_per_mb: float
    ms_per_tensor: float
    ms_per_layer: float
    ms_per_gmac: float

    @classmethod
    def of(cls, known: Mapping[str, Architecture]) -> Fit:
        """Fit the estimate to the models of :data:`SLIDES`, by least squares without negative terms."""
        measured = [known[name] for name in SLIDES]
        loads, runs = np.array(list(SLIDES.values())).T
        load = _solved([(each.bytes / 1e6, each.tensors) for each in measured], loads)
        run = _solved([(len(each.layers), each.gmacs) for each in measured], runs)
        return cls(*load, *run)

    def estimated(self, of: Architecture) -> tuple[float, float]:
        """Return the estimated milliseconds to load and to run an architecture."""
        load = self.ms_per_mb * of.bytes / 1e6 + self.ms_per_tensor * of.tensors
        return load, self.ms_per_layer * len(of.layers) + self.ms_per_gmac * of.gmacs

    def times(self, of: Architecture) -> tuple[float, float]:
        """Return the milliseconds to load and to run an architecture: from the paper's slides, otherwise estimated."""
        return SLIDES.get(of.name) or self.estimated(of)


def _solved(rows: list[tuple[float, float]], values: NDArray[np.float64]) -> list[float]:
    solution: list[float] = nnls(np.array(rows), values)[0].tolist()
    return solution
