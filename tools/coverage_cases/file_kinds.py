"""ONNX files of other kinds than a float32 export: quantised, float16, recurrent, and one backbone exported twice.

The files are made here from torchvision's ResNet-18, and compared with ONNX Runtime's own run of the same file.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import no_telemetry  # noqa: F401
import onnx
import onnxruntime
import torch
import torchvision
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import convert_float_to_float16
from torch import Tensor, nn

from gemel.bundles.manifest import InputSpec
from gemel.frames.preprocess import preprocess

from .case import Case, Prepare, Query, lively, street_frames

__all__ = ["CASES"]

_ORIGIN = f"torchvision {torchvision.__version__.partition('+')[0]}, ONNX Runtime {onnxruntime.__version__}"
_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_SPEC = InputSpec(size=(224, 224), **_IMAGENET)


class Reader(nn.Module):
    """Recogniser of text in the form of CRNN (Shi et al., 2015): convolutions, then two bidirectional LSTMs."""

    def __init__(self, classes: int = 97) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for wide, pool in ((64, (2, 2)), (128, (2, 2)), (256, (2, 1)), (512, (2, 1))):
            layers += [nn.Conv2d(channels, wide, 3, padding=1), nn.BatchNorm2d(wide), nn.ReLU(), nn.MaxPool2d(pool)]
            channels = wide
        self.features = nn.Sequential(*layers, nn.Conv2d(512, 512, 2), nn.ReLU())
        self.recurrent = nn.LSTM(512, 256, num_layers=2, bidirectional=True, batch_first=True)
        self.classes = nn.Linear(512, classes)

    def forward(self, image: Tensor) -> Tensor:
        features = self.features(image).squeeze(2).permute(0, 2, 1)
        scores: Tensor = self.classes(self.recurrent(features)[0])
        return scores


def _export(module: nn.Module, path: Path, size: tuple[int, int] = (224, 224), **options: Any) -> Path:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(module.eval(), (torch.zeros(1, 3, *size),), str(path), input_names=["image"], **options)
    return path


def _resnet(folder: Path) -> Path:
    return _export(_live(), folder / "float.onnx", dynamo=False)


def _live() -> nn.Module:
    """Return the ResNet-18 with random weights from which all files are exported, always the same."""
    return lively(partial(torchvision.models.resnet18, weights=None), {"fc": (0, 3)})


class _Frames(CalibrationDataReader):  # type: ignore[misc]
    """Frames of the street in the form in which ONNX Runtime's calibrators read them."""

    def __init__(self) -> None:
        self._inputs: Iterator[dict[str, NDArray[Any]]] = (
            {"image": preprocess(frame, _SPEC)[0]} for frame in street_frames(8)
        )

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        return next(self._inputs, None)


def _static(kind: QuantFormat, source: Path, path: Path) -> None:
    quant_pre_process(str(source), str(path.with_suffix(".ready.onnx")), skip_symbolic_shape=True)
    quantize_static(
        str(path.with_suffix(".ready.onnx")), str(path), _Frames(), quant_format=kind, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip


def _dynamic(source: Path, path: Path) -> None:
    quant_pre_process(str(source), str(path.with_suffix(".ready.onnx")), skip_symbolic_shape=True)
    quantize_dynamic(str(path.with_suffix(".ready.onnx")), str(path), weight_type=QuantType.QUInt8)


def _half(source: Path, path: Path) -> None:
    onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), path)


def _converted(convert: Any) -> Prepare:
    def prepare(folder: Path) -> Query:
        convert(_resnet(folder), folder / "a.onnx")
        return _classifier("a.onnx")

    return prepare


def _classifier(file: str) -> Query:
    normalisation = {name: list(values) for name, values in _IMAGENET.items()}
    return {"task": "classification", "model": {"onnx": file, "input": normalisation}}


def _exported(file: str, **options: Any) -> Prepare:
    """Export the ResNet-18 of all cases as a float32 ONNX file."""

    def prepare(folder: Path) -> Query:
        _export(_live(), folder / file, **options)
        return _classifier(file)

    return prepare


def _reader(folder: Path) -> Query:
    spec = InputSpec(size=(32, 128), **_IMAGENET)
    _export(lively(Reader, {"classes": (0, 3)}, spec=spec), folder / "a.onnx", (32, 128), dynamo=False)
    charset = [chr(33 + index) for index in range(96)]
    normalisation = {name: list(values) for name, values in _IMAGENET.items()}
    return {"task": "ocr", "labels": charset, "model": {"onnx": "a.onnx", "input": normalisation}}


_FOLDED = partial(_exported, dynamo=False)
_UNFOLDED = partial(_exported, dynamo=False, do_constant_folding=False, training=torch.onnx.TrainingMode.PRESERVE)
_DYNAMO = partial(_exported, dynamo=True)

CASES = (
    *(
        Case(f"ResNet-18, {name}", _ORIGIN, False, _converted(convert), float_only="the file is quantised already")
        for name, convert in (
            ("static int8, Q/DQ", partial(_static, QuantFormat.QDQ)),
            ("static int8, QOperator", partial(_static, QuantFormat.QOperator)),
            ("dynamic int8", _dynamic),
        )
    ),
    Case("ResNet-18, float16", _ORIGIN, False, _converted(_half)),
    Case("ResNet-18, TorchScript exporter", _ORIGIN, False, _FOLDED("a.onnx"), sibling=_DYNAMO("b.onnx"),
         sibling_words="the same model by the dynamo exporter"),
    Case("ResNet-18, dynamo exporter", _ORIGIN, False, _DYNAMO("a.onnx"), sibling=_UNFOLDED("b.onnx"),
         sibling_words="the same model by TorchScript, BatchNorm unfolded"),
    Case("CRNN, bidirectional LSTM", f"torch {torch.__version__.partition('+')[0]}", False, _reader),
)  # fmt: skip
