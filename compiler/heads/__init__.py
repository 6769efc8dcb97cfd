"""Cutting of a model where decoding begins, into stages to export and a decoder for their outputs.

======================================================  ==========================================================
model                                                   stages
======================================================  ==========================================================
torchvision SSD, SSDLite, RetinaNet, FCOS               ``main``: backbone and heads
torchvision Faster R-CNN (any backbone)                 ``main``: backbone and proposals; ``roi``; ``head``
torchvision Mask R-CNN, task ``segmentation``           as Faster R-CNN, ``mask_roi``, ``mask``
torchvision Keypoint R-CNN, task ``pose``               as Faster R-CNN, ``keypoint_roi``, ``keypoint``
a :class:`ZooModel` (:mod:`gemel.workload.zoo`)         ``main``: the module as it is
any other module                                        ``main``: the module, with the outputs that are used
======================================================  ==========================================================

The frame is resized and normalised outside the graph, as :class:`~gemel.bundles.manifest.InputSpec` says; boxes,
thresholds and non-maximum suppression are done by :mod:`gemel.runtime.decode`.
"""

from __future__ import annotations

from torch import nn
from torchvision.models.detection import FCOS, FasterRCNN, KeypointRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.ssd import SSD

from ...bundles.manifest import InputSpec
from ...errors import ModelError
from ..recognition import OutputWords
from .faster_rcnn import cut_faster_rcnn
from .frozen_batch_norm import thaw_batch_norm
from .inputs import input_defaults
from .one_stage import cut_fcos, cut_one_stage
from .refuse import refuse_quantized
from .stages import Cut, StageModule, ZooModel, as_tuple
from .whole import cut_module, cut_zoo

__all__ = ["Cut", "StageModule", "ZooModel", "as_tuple", "cut", "input_defaults", "thaw_batch_norm"]


def cut(
    model: nn.Module,
    task: str,
    input: InputSpec | None = None,  # noqa: A002 - the field's name everywhere
    words: OutputWords = OutputWords(),  # noqa: B008 - frozen
) -> Cut:
    """Cut a model into the stages that are exported.

    The model is put in eval mode and its FrozenBatchNorm2d layers are replaced in place (:func:`thaw_batch_norm`). Its
    weights and their names stay.

    Args:
        model: module with its weights.
        task: task of the query.
        input: input that the workload asks for. Fields that are not set are taken from the model
            (:func:`input_defaults`); None takes all fields from the model.
        words: what the workload says about the outputs.

    Raises:
        ModelError: the outputs cannot be decoded for this task, or the model does not run on such an input.
    """
    refuse_quantized(model)
    thaw_batch_norm(model.eval())
    spec = input_defaults(model)
    if input is not None:
        spec = spec.model_copy(update={name: getattr(input, name) for name in input.model_fields_set})
    if isinstance(model, ZooModel):
        return cut_zoo(model, task, spec)
    if isinstance(model, SSD | RetinaNet | FCOS | FasterRCNN):
        return _cut_detector(model, task, spec, words)
    return cut_module(model, task, spec, input, words)


def _cut_detector(model: SSD | RetinaNet | FCOS | FasterRCNN, task: str, spec: InputSpec, words: OutputWords) -> Cut:
    """Cut a torchvision detector into the stages to export, as its class and the query's task require.

    Raises:
        ModelError: the detector does not do the task, or the workload picks outputs or a decoder.
    """
    name = type(model).__name__
    if words.outputs is not None or words.decode not in (None, "torchvision"):
        key = "model.outputs" if words.outputs is not None else "decode"
        raise ModelError(f"{name}: {key} is not for torchvision's detectors, whose outputs gemel knows; leave it out")
    if task == "detection":
        if isinstance(model, FasterRCNN):
            return cut_faster_rcnn(model, spec)
        return cut_fcos(model, spec) if isinstance(model, FCOS) else cut_one_stage(model, spec)
    if task == "segmentation" and isinstance(model, MaskRCNN):
        return cut_faster_rcnn(model, spec, "mask")
    if task == "pose" and isinstance(model, KeypointRCNN):
        return cut_faster_rcnn(model, spec, "keypoint")
    others = {MaskRCNN: " or segmentation", KeypointRCNN: " or pose"}
    more = next((words for kind, words in others.items() if isinstance(model, kind)), "")
    raise ModelError(f"{name} is a detector: its task is detection{more}, not {task}")
