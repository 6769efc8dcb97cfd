"""Knowledge of Hugging Face's models: input, class names and activation, from config.json and preprocessor_config.json.

``save_pretrained`` and exporters such as Optimum write both files beside the weights. A configuration is an object with
the entries of config.json as attributes: a module's own, or :attr:`FilesBeside.config`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from ...bundles.manifest import InputSpec

__all__ = [
    "FilesBeside",
    "hugging_face_activation",
    "hugging_face_input",
    "hugging_face_names",
    "read_files_beside",
    "read_processor_file",
    "saved_factory",
]

_CONFIG = "config.json"
_MOST_BYTES = 4 << 20
"""Maximum size in bytes of a configuration file; a file with 21,841 class names has 1.5 MB."""
_MOST_SIDE = 8192
"""Maximum number of pixels of a side of a model's input."""
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_DETR_SIZE = (800, 1333)
"""Height and width in pixels to which DETR's processor scales a wide frame: its limits for short and long edges."""
_SOFTMAX_DETRS = frozenset({"detr", "table-transformer", "yolos"})
"""Hugging Face's detector types whose class scores are a softmax with the background last; others have sigmoids."""
_PLAIN_DETRS = ("rt_detr", "d_fine")
"""Hugging Face's detector types that take pixels from 0 to 1, without mean and standard deviation."""
_SIZES = {"deimv2": 640, "dinov2": 224, "lw_detr": 640, "rf_detr": 560, "segformer": 512, "upernet": 512}
"""Hugging Face model type -> side of the square input of the type's published models, where the configuration does
not say, or says the size that the position embeddings were trained on."""
_HALF_NORMALISED = frozenset(
    {
        *("beit", "data2vec-vision", "dpt", "mobilenet_v1", "mobilenet_v2", "siglip", "siglip_vision_model"),
        *("siglip2", "siglip2_vision_model", "vit", "vit_msn"),
    }
)
"""Hugging Face model types whose processors normalise pixels to -1 to 1."""
_CLIP_NORMALISED = frozenset({"clip", "clip_vision_model", "metaclip_2", "metaclip_2_vision_model"})


def hugging_face_names(config: Any) -> dict[int, str] | None:
    """Return class number -> class name of a model; None without names. ``LABEL_0``, ``LABEL_1``, ... are no names."""
    names = getattr(config, "id2label", None)
    if not isinstance(names, Mapping) or all(name == f"LABEL_{number}" for number, name in names.items()):
        return None
    return {int(number): str(name) for number, name in names.items() if str(number).isdecimal()}


def hugging_face_activation(config: Any, task: str) -> Literal["softmax", "sigmoid"] | None:
    """Return the activation that a model's class scores need; None if the values of its outputs must show it."""
    if task == "detection":
        return "softmax" if config.model_type in _SOFTMAX_DETRS else "sigmoid"
    if getattr(config, "problem_type", None) == "multi_label_classification":
        return "sigmoid"
    return None


def hugging_face_input(config: Any, folder: Path | None) -> InputSpec:
    """Return the input that a Hugging Face model was made for.

    Args:
        config: configuration of the model.
        folder: folder with preprocessor_config.json. If None or without such a file, the input is that of most
            published models of this type.
    """
    usual = _usual_input(config)
    return usual.model_copy(update=read_processor_file(folder)) if folder is not None else usual


@dataclass(frozen=True)
class FilesBeside:
    """Configuration files beside an ONNX file."""

    config: Any
    input: InputSpec

    @property
    def entries(self) -> dict[str, str]:
        """Class names, in the form of the metadata that exporters write into ONNX files."""
        names = hugging_face_names(self.config)
        return {"names": repr(names)} if names is not None else {}

    def activation(self, task: str) -> Literal["softmax", "sigmoid"] | None:
        """Return the activation that a model's class scores need; None if the values of its outputs must show it."""
        return hugging_face_activation(self.config, task)


def read_files_beside(path: Path) -> FilesBeside | None:
    """Read config.json and preprocessor_config.json beside an ONNX file; None without a config.json of Hugging Face.

    Optimum writes both files into the folder of the ONNX file. Models for transformers.js have the ONNX file in a
    folder ``onnx``, and both files in the folder above.
    """
    folder = path.parent if path.parent.name != "onnx" or (path.parent / _CONFIG).exists() else path.parent.parent
    content = _read(folder / _CONFIG)
    if not isinstance(content.get("model_type"), str):
        return None
    config = SimpleNamespace(**content)
    return FilesBeside(config, hugging_face_input(config, folder))


def saved_factory(folder: Path) -> tuple[str, str] | None:
    """Return factory and architecture of a model that ``save_pretrained`` wrote into a folder; None without a model.

    The config.json of Hugging Face names the class of the model; that of segmentation-models-pytorch has the key
    ``_model_class``.
    """
    content = _read(folder / _CONFIG)
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("pytorch_model*.bin")):
        return None
    own, known = content.get("_model_class"), content.get("architectures")
    if isinstance(own, str) and own.isidentifier():
        return "segmentation_models_pytorch:from_pretrained", own
    kind = known[0] if isinstance(known, list) and known else None
    if isinstance(content.get("model_type"), str) and isinstance(kind, str) and kind.isidentifier():
        return f"transformers:{kind}.from_pretrained", kind
    return None


def read_processor_file(folder: Path) -> dict[str, Any]:
    """Return the fields of :class:`~gemel.bundles.manifest.InputSpec` in a folder's preprocessor_config.json.

    A file that is missing or not understood gives no fields. gemel's resizing takes the place of the processor's: a
    frame is stretched to the size that the processor would crop.
    """
    content = _read(folder / "preprocessor_config.json") or _read(folder / "processor_config.json")
    content = content.get("image_processor", content)
    if not isinstance(content, dict) or not {"image_mean", "size", "do_rescale", "do_resize"} & set(content):
        return {}
    found: dict[str, Any] = dict(_processor_size(content))
    factor = content.get("rescale_factor")
    scaled = content.get("do_rescale") is not False
    found["scale"] = float(factor) if scaled and isinstance(factor, int | float) else 1 / 255 if scaled else 1.0
    mean, std = _three(content.get("image_mean")), _three(content.get("image_std"))
    flipped = bool(content.get("do_flip_channel_order"))
    # MobileViT's processor has a mean that it does not use, and does not say so.
    if content.get("do_normalize", mean is not None and not flipped) is not True:
        found |= {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    elif mean is not None and std is not None and all(std):
        found |= {"mean": mean, "std": std}
    if flipped:
        found["color"] = "bgr"
    return found


def _usual_input(config: Any) -> InputSpec:
    """Return the input settings of most published Hugging Face models of the type that a configuration names."""
    kind = str(config.model_type)
    if kind.startswith(_PLAIN_DETRS):
        return InputSpec(size=(640, 640))
    parts = (config, getattr(config, "vision_config", None), getattr(config, "backbone_config", None))
    own = next(filter(None, (getattr(part, "image_size", None) for part in parts)), None)
    usual = _SIZES.get(kind.removesuffix("_with_registers"))
    size = _pair(usual) or _pair(own) or (224, 224)
    if kind in _SOFTMAX_DETRS or (kind.endswith("_detr") and usual is None):
        return InputSpec(size=_pair(own) or _DETR_SIZE, mean=_IMAGENET[0], std=_IMAGENET[1])
    if kind.startswith("mobilevit"):
        return InputSpec(size=size, color="bgr")
    mean, std = _HALF if kind in _HALF_NORMALISED else _CLIP if kind in _CLIP_NORMALISED else _IMAGENET
    return InputSpec(size=size, mean=mean, std=std)


def _processor_size(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``size`` and ``fit`` of the input that a Hugging Face processor asks for; empty if it does not say."""
    if content.get("do_resize") is False:
        return {}
    if content.get("do_center_crop") and (cropped := _pair(content.get("crop_size"))):
        return {"size": cropped}
    size = content.get("size")
    if pair := _pair(size):
        return {"size": pair}
    if not isinstance(size, Mapping):
        return {}
    short, long = (_side(size.get(f"{name}_edge")) for name in ("shortest", "longest"))
    if short is None:
        # SAM scales the longer side and pads at the right and bottom.
        fit = "letterbox" if content.get("do_pad") else "stretch"
        return {"size": (long, long), "fit": fit} if long else {}
    if long is None or long <= short:
        return {"size": (short, short)}
    return {"size": (short, long)}


def _pair(size: Any) -> tuple[int, int] | None:
    """Return (height, width) from one number, two numbers or a mapping; None if the value is none of these."""
    if isinstance(size, Mapping):
        size = [size.get("height"), size.get("width")]
    sides = [size, size] if isinstance(size, int) else list(size) if isinstance(size, list | tuple) else []
    height, width = map(_side, sides) if len(sides) == 2 else (None, None)
    return (height, width) if height is not None and width is not None else None


def _side(value: Any) -> int | None:
    """Return a value if it is a valid number of pixels for a side of a model's input, otherwise None."""
    return value if isinstance(value, int) and 0 < value <= _MOST_SIDE else None


def _three(values: Any) -> tuple[float, ...] | None:
    """Return three numbers, one a channel, from a list of three or from a single number; None for any other value."""
    values = [values] * 3 if isinstance(values, int | float) else values
    is_list = isinstance(values, list) and len(values) == 3 and all(isinstance(each, int | float) for each in values)
    return tuple(map(float, values)) if is_list else None


def _read(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file; empty if there is none, or if it is no JSON object of a usual size."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            return {}
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
