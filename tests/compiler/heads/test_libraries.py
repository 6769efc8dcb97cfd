"""Test what modules of Ultralytics and Hugging Face say of themselves, with small stand-ins of the same form."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gemel.bundles.decode_specs import ClassificationDecode, DetrDecode, EmbeddingDecode, GridDecode
from gemel.bundles.manifest import InputSpec
from gemel.compiler.heads import cut, input_defaults
from gemel.compiler.heads.libraries import describe_module
from gemel.compiler.lowering.export import export_stages
from gemel.compiler.recognition import OutputWords
from gemel.errors import ModelError

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = InputSpec.model_construct(_fields_set={"size"}, size=(64, 64))


def of_library(kind: type[nn.Module], module: str) -> type[nn.Module]:
    """Return a class that looks as if it was defined in another module."""
    return type(kind.__name__, (kind,), {"__module__": module})


class Head(nn.Module):
    """Detection head that keeps the anchors of its last input, as those of Ultralytics do."""

    export = False
    format = None
    shape: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(4, 6, 3, stride, 1) for stride in (2, 4, 8))
        self.anchors = torch.zeros(0)

    def forward(self, x: Tensor) -> Any:
        levels = [layer(x) for layer in self.layers]
        if self.shape != levels[0].shape:
            self.anchors = torch.arange(sum(level.shape[2] * level.shape[3] for level in levels))
            self.shape = levels[0].shape
        rows = torch.cat([level.flatten(2) for level in levels], 2).sigmoid()
        boxes = rows[:, :4] * 64 + self.anchors
        return torch.cat([boxes, rows[:, 4:]], 1) if self.export else (rows, levels)


class DetectionModel(nn.Module):
    """Detector of two classes."""

    def __init__(self) -> None:
        super().__init__()
        head = of_library(Head, "ultralytics.nn.modules.head")
        self.model = nn.Sequential(nn.Conv2d(3, 4, 3, 4, 1), head())
        self.names = {0: "cat", 1: "dog"}
        self.stride = torch.tensor([8.0, 16.0, 32.0])

    def forward(self, image: Tensor) -> Any:
        return self.model(image)


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Stand in for the module in which Ultralytics tells a model's task."""
    module = ModuleType("ultralytics.nn.tasks")
    module.guess_model_task = lambda model: "detect"  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, "ultralytics.nn.tasks", module)
    return module


def test_ultralytics(tasks: ModuleType) -> None:
    torch.manual_seed(0)
    model = of_library(DetectionModel, "ultralytics.nn.tasks")().eval()
    said = describe_module(model)
    assert said["task"] == "detect" and said["stride"] == "32"
    parts = cut(model, "detection", SIZE)
    decode = parts.decode
    assert isinstance(decode, GridDecode) and decode.classes == 2 and decode.transposed
    assert parts.labels == ("cat", "dog") and parts.input.fit == "letterbox-center"
    assert input_defaults(model).size == (640, 640)
    # The head keeps its anchors, although the exported batch is free and so differs from the batch that was run.
    graph = export_stages(parts.stages["main"], "query door").graph
    assert str(graph.outputs[0].shape) == "[batch,6,84]"


def test_ultralytics_of_another_task(tasks: ModuleType) -> None:
    model = of_library(DetectionModel, "ultralytics.nn.tasks")()
    tasks.guess_model_task = lambda model: "obb"  # type: ignore[attr-defined]
    with pytest.raises(ModelError, match=r"DetectionModel: .*oriented detection"):
        cut(model, "detection", SIZE)


class Transformer(nn.Module):
    """Model of Hugging Face: two answers and a hidden state, by name."""

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.config = SimpleNamespace(**config)
        self.patches = nn.Conv2d(3, 8, 16, 16)
        self.classes, self.boxes = nn.Linear(8, 3), nn.Linear(8, 4)

    def forward(self, pixel_values: Tensor) -> dict[str, Any]:
        tokens = self.patches(pixel_values).flatten(2).transpose(1, 2)
        if self.config.model_type == "vit":
            return {"logits": self.classes(tokens.mean(1)), "pooler_output": tokens.mean(1), "hidden": tokens}
        boxes = self.boxes(tokens).sigmoid()
        # Other boxes of the same shape come first, as the proposals of RT-DETR do.
        return {"enc_boxes": boxes / 2, "logits": 9 * self.classes(tokens), "pred_boxes": boxes, "hidden": tokens}


def hugging_face(**config: Any) -> nn.Module:
    """Make a stand-in of Hugging Face's library with a configuration."""
    torch.manual_seed(0)
    return of_library(Transformer, "transformers.models.modeling")(**config)


def test_hugging_face_classifier() -> None:
    names = {0: "cat", 1: "dog", 2: "cow"}
    model = hugging_face(model_type="vit", image_size=96, id2label=names)
    assert input_defaults(model) == InputSpec(size=(96, 96), mean=(0.5,) * 3, std=(0.5,) * 3)
    parts = cut(model, "classification", SIZE)
    assert parts.decode == ClassificationDecode(classes=3, top_k=3) and parts.labels == ("cat", "dog", "cow")
    assert parts.stages["main"].outputs == ("logits",)
    embedding = cut(model, "embedding", SIZE)
    assert embedding.decode == EmbeddingDecode() and embedding.stages["main"].outputs == ("pooler_output",)
    unnamed = hugging_face(model_type="vit", id2label={0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"})
    assert cut(unnamed, "classification", SIZE).labels is None and input_defaults(unnamed).size == (224, 224)
    several = hugging_face(model_type="vit", problem_type="multi_label_classification")
    decode = cut(several, "classification", SIZE).decode
    assert isinstance(decode, ClassificationDecode) and decode.multi_label and decode.activation == "sigmoid"


@pytest.mark.parametrize(
    ("kind", "activation", "classes"), [("detr", "softmax", 2), ("rt_detr", "sigmoid", 3), ("yolos", "softmax", 2)]
)
def test_hugging_face_detector(kind: str, activation: str, classes: int) -> None:
    model = hugging_face(model_type=kind)
    parts = cut(model, "detection", SIZE)
    expected = DetrDecode(logits="logits", boxes="pred_boxes", activation=activation, classes=classes)
    assert parts.decode == expected
    assert parts.stages["main"].outputs == ("logits", "pred_boxes")
    assert input_defaults(model).size == ((640, 640) if kind == "rt_detr" else (800, 1333))


@pytest.mark.parametrize("task", ["classification", "detection", "segmentation"])
def test_hugging_face_model_without_a_head(task: str) -> None:
    class Encoder(Transformer):
        def forward(self, pixel_values: Tensor) -> dict[str, Any]:
            maps = self.patches(pixel_values)
            return {"last_hidden_state": maps, "pooler_output": maps.mean((2, 3))}

    model = of_library(Encoder, "transformers.models.modeling")(model_type="dinov2")
    with pytest.raises(ModelError, match=rf"Encoder has no output logits for the task {task}, but last_hidden_state, "):
        cut(model, task, SIZE)
    assert cut(model, "embedding", SIZE).stages["main"].outputs == ("pooler_output",)
    if task == "classification":
        assert cut(model, task, SIZE, OutputWords(outputs=["pooler_output"])).decode.kind == task
