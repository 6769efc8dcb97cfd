"""What modules of well-known libraries say about themselves: task, class names, input, and how they are made to export.

The description has the keys and the form of the metadata that Ultralytics writes into ONNX files, so that modules and
files are read by the same rules. No library is imported: a module tells its library by its class.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from ...bundles.manifest import InputSpec

__all__ = [
    "describe_module",
    "keep_anchors",
    "library_activation",
    "library_input",
    "library_outputs",
    "prepare_module",
]

_HALF = (0.5, 0.5, 0.5)
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_DETR_SIZE = (800, 1344)
"""Size that DETR's processor gives a landscape frame, rounded up to a multiple of 32."""
_GREY = 114 / 255
"""Value around a frame that Ultralytics letterboxes."""
_SOFTMAX_DETRS = frozenset({"detr", "table-transformer", "yolos"})
"""Hugging Face's model types whose class scores are a softmax with the background last; all others have sigmoids."""
_HALF_NORMALISED = frozenset({"vit", "vit_msn", "beit", "data2vec-vision", "siglip", "siglip_vision_model"})
"""Hugging Face's model types whose processors normalise pixels to -1 to 1; all others take ImageNet's values."""
_USUAL_OUTPUTS = {
    "detection": ("logits", "pred_boxes"),
    "segmentation": ("logits",),
    "classification": ("logits",),
    "embedding": ("image_embeds", "pooler_output"),
}
"""Task -> outputs of Hugging Face's models that answer it; all others are intermediate values."""


def describe_module(model: nn.Module) -> dict[str, str]:
    """Return what a module of Ultralytics or Hugging Face says about its outputs; empty for any other module.

    ``names`` is a Python literal: class number -> name. Hugging Face's ``LABEL_0``, ``LABEL_1``, ... are no names.
    """
    if _is_from(model, "ultralytics"):
        return _describe_ultralytics(model)
    config = _hugging_face(model)
    names = getattr(config, "id2label", None)
    if isinstance(names, Mapping) and not all(name == f"LABEL_{number}" for number, name in names.items()):
        return {"names": repr({int(number): str(name) for number, name in names.items()})}
    return {}


def library_activation(model: nn.Module, task: str) -> Literal["softmax", "sigmoid"] | None:
    """Return the activation that a Hugging Face module's class scores need; None where the outputs tell."""
    config = _hugging_face(model)
    if config is None:
        return None
    if task == "detection":
        return "softmax" if config.model_type in _SOFTMAX_DETRS else "sigmoid"
    if getattr(config, "problem_type", None) == "multi_label_classification":
        return "sigmoid"
    return None


def library_input(model: nn.Module) -> InputSpec | None:
    """Return the input that a module of Ultralytics or Hugging Face was made for; None for any other module.

    Hugging Face keeps mean and standard deviation in a file beside the model, not in the module. These are the defaults
    of each architecture's processor.
    """
    if _is_from(model, "ultralytics"):
        kind = describe_module(model).get("task")
        if kind == "classify":
            return InputSpec(size=(224, 224))
        fit = "stretch" if "RTDETR" in type(model).__name__ else "letterbox-center"
        return InputSpec(size=(640, 640), fit=fit, pad=_GREY)
    config = _hugging_face(model)
    if config is None:
        return None
    kind = str(config.model_type)
    if kind.startswith(("rt_detr", "d_fine")):
        return InputSpec(size=(640, 640))
    if kind in _SOFTMAX_DETRS or kind.endswith("_detr"):
        return InputSpec(size=_DETR_SIZE, mean=_IMAGENET[0], std=_IMAGENET[1])
    size = getattr(config, "image_size", None) or (512 if kind == "segformer" else 224)
    height, width = (size, size) if isinstance(size, int) else size
    if kind.startswith("mobilevit"):
        return InputSpec(size=(height, width), color="bgr")
    mean, std = (_HALF, _HALF) if kind in _HALF_NORMALISED else _IMAGENET
    return InputSpec(size=(height, width), mean=mean, std=std)


def library_outputs(model: nn.Module, task: str, names: Sequence[str]) -> tuple[str, ...]:
    """Return the outputs of a Hugging Face model that answer a task, if it has them; otherwise all outputs."""
    if _hugging_face(model) is None:
        return tuple(names)
    usual = tuple(name for name in _USUAL_OUTPUTS.get(task, ()) if name in names)
    return usual or tuple(names)


def prepare_module(model: nn.Module) -> None:
    """Set a module's own switches for export, in place.

    The heads of Ultralytics keep the anchors of the last input. They compute them again if the shape differs, and a
    batch of free size differs from every batch.
    """
    if not _is_from(model, "ultralytics"):
        return
    for layer in model.modules():
        if type(layer).__module__.startswith("ultralytics.") and hasattr(layer, "export") and hasattr(layer, "format"):
            layer.export = True  # type: ignore[assignment]
            layer.format = "onnx"  # type: ignore[assignment]


def keep_anchors(model: nn.Module) -> None:
    """Make the heads of Ultralytics keep the anchors that they computed in their last run, in place."""
    if not _is_from(model, "ultralytics"):
        return
    for layer in model.modules():
        if type(layer).__module__.startswith("ultralytics.") and getattr(layer, "shape", None) is not None:
            layer.shape = _AnyShape()  # type: ignore[assignment]


class _AnyShape:
    """Shape that differs from none."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = None  # type: ignore[assignment]


def _is_from(model: nn.Module, library: str) -> bool:
    """Return whether a module's class, or one that it derives from, is from a library."""
    return any(kind.__module__.split(".")[0] == library for kind in type(model).__mro__)


def _hugging_face(model: nn.Module) -> Any:
    """Return the configuration of a Hugging Face model; None for any other module."""
    config = getattr(model, "config", None)
    return config if _is_from(model, "transformers") and hasattr(config, "model_type") else None


def _describe_ultralytics(model: nn.Module) -> dict[str, str]:
    """Return the entries that Ultralytics' own exporter would write, as far as outputs depend on them."""
    guess_task = getattr(sys.modules.get("ultralytics.nn.tasks"), "guess_model_task", None)
    layers = getattr(model, "model", None)
    head = layers[-1] if isinstance(layers, nn.Sequential) and len(layers) else None
    strides = getattr(model, "stride", None)
    found = {
        "author": "Ultralytics",
        "task": guess_task(model) if guess_task is not None else None,
        "names": getattr(model, "names", None),
        "stride": int(max(strides)) if isinstance(strides, Tensor) else None,
        "kpt_shape": getattr(head, "kpt_shape", None),
        "end2end": getattr(model, "end2end", None),
    }
    return {key: str(value) for key, value in found.items() if value is not None}
