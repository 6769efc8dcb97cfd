"""Recognition of the arguments of ``gemel init``: model files, factories, videos, folders and cameras."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...errors import InputError
from ...frames.reader import IMAGE_SUFFIXES
from ...frames.reference import package_file
from ..recognition.hugging_face import saved_factory
from .onnx_facts import OnnxFacts, read_facts

__all__ = ["GivenFeed", "GivenModel", "sort_given", "unique_name"]

_WEIGHTS = (".safetensors", ".pt", ".pth", ".th", ".weights")
_MOST_NAME = 58
"""Maximum number of characters of a name before a number is appended; a workload allows 64 in all."""
_ALLOWED = (
    "an ONNX file, a factory (module:name), weights after their factory, a folder that save_pretrained wrote, a video,"
    " a folder of images, rtsp://..., or /dev/video0"
)
_FACTORY_TASKS = (
    (r"torchvision\.models\.detection:keypoint", "pose"),
    (r"torchvision\.models\.detection|.*\.zoo\.(darknet|ssdlite)", "detection"),
    (r"torchvision\.models\.segmentation|segmentation_models_pytorch", "segmentation"),
    (r".*\.zoo\.mobilenet", "embedding"),
    (r"torchvision\.models|timm|.*\.zoo\.cifar_resnet", "classification"),
)
"""Pairs of a regular expression for a factory's name and the task of the factory's models; the first match decides."""

_ARCHITECTURES = (
    ("ForImageClassification", "classification"),
    ("ForObjectDetection", "detection"),
    ("ForSemanticSegmentation", "segmentation"),
    ("(Model|WithProjection)$", "embedding"),
)
"""Pairs of a regular expression for a Hugging Face class's name and the task of its models; the first match decides."""


@dataclass(frozen=True)
class GivenModel:
    """Model in the arguments of ``gemel init``, for which queries are drafted."""

    name: str
    reference: str
    """Path of the model's ONNX file as it was given, or the model's factory."""
    task: str
    reason: str
    """Reason why the model's task was chosen, for a comment in the drafted workload.yaml."""
    facts: OnnxFacts | None = None
    """Facts about the model's ONNX file; None for a factory."""
    weights: str | None = None
    folder: str | None = None
    """Folder, as it was given, from which the factory reads the model; None for other factories."""


@dataclass(frozen=True)
class GivenFeed:
    """Source of frames in the arguments of ``gemel init``: a video, a folder of images, or a camera."""

    name: str
    source: str
    recorded: bool
    """Whether the source of frames is a recording (a file or a folder), which has an end."""


def sort_given(arguments: Sequence[str]) -> tuple[list[GivenModel], list[GivenFeed]]:
    """Sort the arguments of ``gemel init`` into models and feeds, in their order, and give them unique names.

    Raises:
        InputError: an argument is neither a model nor a source of frames, or does not exist.
        ModelError: an ONNX file cannot be read.
    """
    models: list[GivenModel] = []
    feeds: list[GivenFeed] = []
    for argument in arguments:
        if argument.startswith("/dev/") or re.match(r"(?i)(rtsps?|https?)://|\$\{", argument):
            name = Path(argument).name if argument.startswith("/dev/") else "camera"
            feeds.append(GivenFeed(unique_name(name, [feed.name for feed in feeds]), argument, recorded=False))
        elif re.fullmatch(r"\w+(\.\w+)*:\w+(\.\w+)*", argument) and not Path(argument).exists():
            models.append(_factory(argument, [model.name for model in models]))
        else:
            _sort_file(argument, models, feeds)
    return models, feeds


def _sort_file(argument: str, models: list[GivenModel], feeds: list[GivenFeed]) -> None:
    """Append a file or folder to the models or feeds of ``gemel init``; a weight file is added to the last model."""
    if argument.startswith("package:"):
        path = package_file(argument)
    else:
        path = Path(argument).expanduser()
        if not path.exists():
            raise InputError(f"{argument}: no such file; allowed: {_ALLOWED}")
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        facts = read_facts(path)
        name = unique_name(path.stem[:28], [model.name for model in models])
        models.append(GivenModel(name, argument, facts.task, facts.reason, facts))
    elif suffix in _WEIGHTS:
        if not models or models[-1].facts is not None or models[-1].weights is not None:
            raise InputError(f"{argument}: weights do not say what the model is; give its factory before: module:name")
        models[-1] = replace(models[-1], weights=argument)
    elif path.is_dir() and (saved := saved_factory(path)) is not None:
        models.append(_saved(argument, saved, [model.name for model in models]))
    elif path.is_dir() and not any(item.suffix.lower() in IMAGE_SUFFIXES for item in path.iterdir()):
        raise InputError(f"{argument}: a folder without images; allowed: {_ALLOWED}")
    elif suffix in (".yaml", ".yml", ".json", ".py", ".txt"):
        raise InputError(f"{argument}: neither a model nor a source of frames; allowed: {_ALLOWED}")
    else:
        feeds.append(GivenFeed(unique_name(path.stem[:28], [feed.name for feed in feeds]), argument, recorded=True))


def _factory(reference: str, taken: Iterable[str]) -> GivenModel:
    name = unique_name(reference.partition(":")[2].rpartition(".")[2], taken)
    for pattern, task in _FACTORY_TASKS:
        if re.match(pattern, reference):
            return GivenModel(name, reference, task, "as models of this module are")
    return GivenModel(name, reference, "classification", "a guess; or detection, embedding, segmentation, pose, raw")


def _saved(folder: str, saved: tuple[str, str], taken: Iterable[str]) -> GivenModel:
    """Return the model in a folder that ``save_pretrained`` wrote, with the task that its architecture tells."""
    factory, kind = saved
    pixels = "segmentation" if factory.startswith("segmentation") else None
    task = pixels or next((task for words, task in _ARCHITECTURES if re.search(words, kind)), "raw")
    name = unique_name(Path(folder).resolve().name[:28], taken)
    return GivenModel(name, factory, task, f"config.json says {kind}", folder=folder)


def unique_name(text: str, taken: Iterable[str]) -> str:
    """Return a name for a query or feed, made from a text: allowed in a workload, and not among the taken names."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-_")[:_MOST_NAME] or "model"
    used, name, number = set(taken), plain, 2
    while name in used:
        name, number = f"{plain}-{number}", number + 1
    return name
