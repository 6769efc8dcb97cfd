"""Cutting of a model where decoding begins, into stages to export and a decoder for their outputs.

======================================================  ==========================================================
model                                                   stages
======================================================  ==========================================================
torchvision SSD, SSDLite, RetinaNet                     ``main``: backbone and heads
torchvision Faster R-CNN (any backbone)                 ``main``: backbone and proposals; ``roi``; ``head``
a :class:`ZooModel` (:mod:`gemel.workload.zoo`)         ``main``: the module as it is
any other module, for classification and embedding      ``main``: the module as it is
======================================================  ==========================================================

The frame is resized and normalised outside the graph, as :class:`~gemel.bundles.manifest.InputSpec` says; boxes,
thresholds and non-maximum suppression are done by :mod:`gemel.runtime.decode`.
"""

from __future__ import annotations

from torch import nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.ssd import SSD

from ...bundles.manifest import InputSpec
from ...errors import ModelError
from .faster_rcnn import cut_faster_rcnn
from .frozen_batch_norm import thaw_batch_norm
from .inputs import input_defaults
from .one_stage import cut_one_stage
from .stages import Cut, StageModule, ZooModel, as_tuple
from .whole import cut_plain, cut_zoo

__all__ = ["Cut", "StageModule", "ZooModel", "as_tuple", "cut", "input_defaults", "thaw_batch_norm"]


def cut(model: nn.Module, task: str, input: InputSpec | None = None) -> Cut:  # noqa: A002 - the field's name everywhere
    """Cut a model into the stages that are exported.

    The model is put in eval mode and its FrozenBatchNorm2d layers are replaced in place (:func:`thaw_batch_norm`). Its
    weights and their names stay.

    Args:
        model: module with its weights.
        task: classification, detection or embedding.
        input: input that the workload asks for. Fields that are not set are taken from the model
            (:func:`input_defaults`); None takes all fields from the model.

    Raises:
        ModelError: the outputs cannot be decoded for this task, or the model does not run on such an input.
    """
    thaw_batch_norm(model.eval())
    spec = input_defaults(model)
    if input is not None:
        spec = spec.model_copy(update={name: getattr(input, name) for name in input.model_fields_set})
    if isinstance(model, ZooModel):
        return cut_zoo(model, task, spec)
    if task in ("classification", "embedding"):
        return cut_plain(model, task, spec)
    if task != "detection":
        raise ModelError(f"task: {task!r} is not one of classification, detection, embedding")
    if isinstance(model, SSD | RetinaNet):
        return cut_one_stage(model, spec)
    if isinstance(model, FasterRCNN):
        return cut_faster_rcnn(model, spec)
    raise ModelError(
        f"{type(model).__name__}: no way to read its detections; supported are torchvision's SSD, SSDLite, RetinaNet "
        "and Faster R-CNN, the architectures of gemel.workload.zoo, and modules with output_names, decode(size) and "
        "input_defaults() as they have"
    )
