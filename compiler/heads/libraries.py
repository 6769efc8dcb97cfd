"""Knowledge of well-known libraries' modules: their task, class names, input, and how to make them exportable.

A module is described with the keys and in the form of the metadata that Ultralytics writes into ONNX files, so that
modules and files are read by the same rules. No library is imported: the class of a module tells its library.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from ...bundles.manifest import InputSpec
from ...errors import ModelError
from ..recognition.hugging_face import hugging_face_activation, hugging_face_input, hugging_face_names

__all__ = [
    "describe_module",
    "keep_anchors",
    "library_activation",
    "library_input",
    "library_outputs",
    "prepare_module",
]

_GREY = 114 / 255
"""Pixel value (0 to 1) with which Ultralytics fills the border of a letterboxed frame."""
_USUAL_OUTPUTS = {
    "detection": ("logits", "pred_boxes"),
    "segmentation": ("logits",),
    "classification": ("logits",),
    "embedding": ("image_embeds", "pooler_output"),
}
"""Task -> outputs of Hugging Face's models that answer the task; all other outputs are intermediate values."""
_HEADS = {
    "detection": "AutoModelForObjectDetection",
    "segmentation": "AutoModelForSemanticSegmentation",
    "classification": "AutoModelForImageClassification",
}
"""Task -> Hugging Face's class that opens models with a head for the task."""


def describe_module(model: nn.Module) -> dict[str, str]:
    """Return what a module of Ultralytics or Hugging Face says about its outputs; empty for any other module.

    ``names`` is a Python literal: class number -> name. Hugging Face's ``LABEL_0``, ``LABEL_1``, ... are no names.
    """
    if _is_from(model, "ultralytics"):
        return _describe_ultralytics(model)
    config = _hugging_face(model)
    names = hugging_face_names(config)
    return {"names": repr(names)} if names is not None else {}


def library_activation(model: nn.Module, task: str) -> Literal["softmax", "sigmoid"] | None:
    """Return the activation that a Hugging Face module's class scores need; None if the outputs themselves show it."""
    config = _hugging_face(model)
    return hugging_face_activation(config, task) if config is not None else None


def library_input(model: nn.Module) -> InputSpec | None:
    """Return the input that a module of Ultralytics or Hugging Face was made for; None for any other module.

    Hugging Face keeps size, mean and standard deviation in preprocessor_config.json, in the folder that the model was
    read from. Without that file, they are those of most published models of the architecture.
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
    return hugging_face_input(config, _folder_of(config))


def library_outputs(model: nn.Module, task: str, names: Sequence[str]) -> tuple[str, ...]:
    """Return the outputs of a Hugging Face model that answer a task; all outputs of any other module.

    Raises:
        ModelError: a Hugging Face model without a head for the task; its hidden states would be taken for scores.
    """
    if _hugging_face(model) is None:
        return tuple(names)
    usual = tuple(name for name in _USUAL_OUTPUTS.get(task, ()) if name in names)
    if not usual and task in _HEADS:
        found = f"{', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
        raise ModelError(
            f"{type(model).__name__} has no output logits for the task {task}, but {found}; the models that"
            f" transformers:{_HEADS[task]}.from_pretrained opens have one. model.outputs may name another output, and"
            " task: raw reports outputs as they are"
        )
    return usual or tuple(names)


def prepare_module(model: nn.Module) -> None:
    """Switch the heads of an Ultralytics module to export mode, in place; leave any other module as it is.

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
    """Stand-in for a shape that equals every shape, so that Ultralytics' heads never compute their anchors again."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = None  # type: ignore[assignment]


def _is_from(model: nn.Module, library: str) -> bool:
    """Return whether a module's class, or one that it derives from, is from the Python package ``library``."""
    return any(kind.__module__.split(".")[0] == library for kind in type(model).__mro__)


def _hugging_face(model: nn.Module) -> Any:
    """Return the configuration of a Hugging Face model; None for any other module."""
    config = getattr(model, "config", None)
    return config if _is_from(model, "transformers") and hasattr(config, "model_type") else None


def _folder_of(config: Any) -> Path | None:
    """Return the folder that ``from_pretrained`` read a model from; for a name on the hub, its folder in the cache."""
    origin = getattr(config, "_name_or_path", None)
    if not origin or Path(origin).is_dir():
        return Path(origin) if origin else None
    find = getattr(sys.modules.get("huggingface_hub"), "try_to_load_from_cache", None)
    try:
        cached = find(origin, "preprocessor_config.json") if find is not None else None
    except ValueError:  # not a name on the hub
        return None
    return Path(cached).parent if isinstance(cached, str) else None


def _describe_ultralytics(model: nn.Module) -> dict[str, str]:
    """Return the metadata that Ultralytics' exporter would write for a module: task, class names, stride and others."""
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
