"""Models of Hugging Face in folders, as ``save_pretrained`` writes them, with random weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import torch
import transformers
from torch import Tensor, nn

from gemel.bundles.manifest import InputSpec
from gemel.compiler.recognition.hugging_face import read_processor_file
from gemel.frames.frame import Image

from .case import STREET, Answer, Case, Query, lively, street_frames

__all__ = ["ORIGIN", "FolderModel", "image_processor", "input_in", "library_inputs", "stretched"]

ORIGIN = f"transformers {transformers.__version__}"
_Heads = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class FolderModel:
    """A model of Hugging Face in a folder, as ``save_pretrained`` writes it."""

    name: str
    """Name of the class in ``transformers``."""
    config: Callable[[int], Any]
    """Function that returns the model's configuration for a number of classes."""
    processor: Callable[[], Any]
    """Function that returns the model's image processor."""
    heads: _Heads = field(default_factory=dict)
    """Layers that give scores -> mean and standard deviation of their outputs, for :func:`.case.lively`."""
    factory: str = ""
    """Class whose ``from_pretrained`` the workload names; the model's own class if empty."""

    def build(self, classes: int) -> nn.Module:
        """Return the model with random weights for a number of classes; 0 for the configuration's own number."""
        config = self.config(classes)
        if classes:
            config.id2label = {number: f"kind {number}" for number in range(classes)}
        built: nn.Module = getattr(transformers, self.name)(config)
        return built.eval()

    def save(self, folder: Path, classes: int) -> None:
        """Save the model, with random weights, and its processor into a folder."""
        self.processor().save_pretrained(folder)
        model: Any = lively(lambda: self.build(classes), self.heads, spec=input_in(folder), run=lambda net, x: net(x))
        model.save_pretrained(folder)

    def save_fine_tuned(self, folder: Path, frozen: Path, classes: int) -> None:
        """Save a fine-tune of the model in folder ``frozen``: weights with equal shapes stay, all others are random."""
        self.processor().save_pretrained(folder)
        torch.manual_seed(1)
        model: Any = self.build(classes)
        weights = self.open(frozen).state_dict()
        own = model.state_dict()
        model.load_state_dict(own | {name: weights[name] for name in own if weights[name].shape == own[name].shape})
        model.save_pretrained(folder)

    def open(self, folder: Path) -> Any:
        """Open the model in a folder with Hugging Face's transformers."""
        return getattr(transformers, self.factory or self.name).from_pretrained(folder).eval()

    def query(self, task: str, folder: str, **keys: Any) -> Query:
        """Return a workload's query of the model; the model's ``folder`` is relative to the workload."""
        model = {
            "factory": f"transformers:{self.factory or self.name}.from_pretrained",
            "args": {"pretrained_model_name_or_path": folder},
        }
        return {"task": task, "model": model, **keys}

    def case(
        self,
        name: str,
        task: str,
        classes: int,
        answers: Callable[[Path], Answer] | None,
        other: int = 0,
        *,
        frames: str | Callable[[Path], str] = STREET,
        float_only: str = "",
        **keys: Any,
    ) -> Case:
        """Return the case of the model.

        Args:
            name: name of the case.
            task: task of the query.
            classes: number of classes.
            answers: opens the model in its own library.
            other: number of classes of the sibling, a fine-tune with a frozen backbone; 0 without a sibling.
            frames: source of the feed.
            float_only: reason why int8 is not tried.
            keys: further keys of the query.
        """

        def prepare(folder: Path) -> Query:
            self.save(folder / "model", classes)
            return self.query(task, "model", **keys)

        def second(folder: Path) -> Query:
            self.save_fine_tuned(folder / "second", folder / "model", other)
            return self.query(task, "second", **keys)

        words = f"fine-tune of {other} classes, frozen backbone" if other else ""
        sibling = second if other else None
        return Case(name, ORIGIN, False, prepare, "transformers", answers, sibling, words, frames, float_only)

    def exported(
        self,
        name: str,
        task: str,
        classes: int,
        answers: Callable[[Path], Answer],
        outputs: tuple[str, ...],
        *,
        frames: str | Callable[[Path], str] = STREET,
        float_only: str = "",
        **keys: Any,
    ) -> Case:
        """Return the case of an ONNX file with the model's configuration beside it, as Optimum exports one.

        The sibling is the PyTorch model in the folder that the file was exported from.

        Args:
            name: name of the case.
            task: task of the query.
            classes: number of classes.
            answers: opens the model in its own library.
            outputs: names of the outputs that Optimum would give the file.
            frames: source of the feed.
            float_only: reason why int8 is not tried.
            keys: further keys of the query.
        """

        def prepare(folder: Path) -> Query:
            self.save(folder / "model", classes)
            torch.onnx.export(
                _Outputs(self.open(folder / "model"), outputs),
                (torch.zeros(1, 3, *input_in(folder / "model").size),),
                folder / "model" / "model.onnx",
                input_names=["pixel_values"],
                output_names=list(outputs),
                dynamic_axes={port: {0: "batch_size"} for port in ("pixel_values", *outputs)},
                opset_version=17,
                dynamo=False,
            )
            return {"task": task, "model": {"onnx": "model/model.onnx"}, **keys}

        def second(folder: Path) -> Query:
            return self.query(task, "model", **keys)

        words = "the PyTorch model that the file was exported from"
        return Case(name, ORIGIN, False, prepare, "transformers", answers, second, words, frames, float_only)


class _Outputs(nn.Module):
    """Module that returns the outputs of a model of Hugging Face as a tuple, as Optimum's exporter does."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        outputs = self.model(pixel_values)
        return tuple(outputs[name] for name in self.names)


def input_in(folder: Path) -> InputSpec:
    """Return the input settings that the processor in a folder asks for, size included."""
    return InputSpec(**read_processor_file(folder))


def image_processor(kind: str, **changes: Any) -> Callable[[], Any]:
    """Return a function that makes an image processor of ``transformers``."""
    return lambda: getattr(transformers, kind)(**changes)


def stretched(height: int, width: int) -> Callable[[Path], str]:
    """Return a function that writes frames of the street video, which a model of this size need not resize."""

    def write(folder: Path) -> str:
        (folder / "frames").mkdir(exist_ok=True)
        for index, image in enumerate(street_frames(20)):
            cv2.imwrite(str(folder / "frames" / f"{index:02d}.png"), cv2.resize(image, (width, height)))
        return "frames"

    return write


def library_inputs(processor: Any, image: Image) -> Mapping[str, Any]:
    """Return the arguments of a model's ``forward`` that the model's own image processor makes from a frame."""
    pixels = torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1)
    inputs: Mapping[str, Any] = processor(images=pixels, return_tensors="pt")
    return inputs
