"""Test that whatever a module returns becomes named outputs, of which the ones that are used are exported."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from gemel.bundles.decode_specs import ClassificationDecode, DetrDecode, GridDecode, RawDecode, SegmentationDecode
from gemel.bundles.manifest import InputSpec
from gemel.compiler.heads import as_tuple, cut
from gemel.compiler.heads.module_outputs import flatten_outputs, pick_outputs
from gemel.compiler.lowering.export import export_stages, unused_parameters
from gemel.compiler.passes import clean
from gemel.compiler.recognition import OutputWords
from gemel.errors import ModelError

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = (32, 32)
Pair = namedtuple("Pair", "left right")


@dataclass
class Answer:
    """Stand-in for the output classes of libraries."""

    logits: Tensor
    features: Any = None


class Backbone(nn.Module):
    """Two heads on one convolution; ``form`` decides how they are returned."""

    def __init__(self, form: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2)
        self.classes = nn.Linear(4, 5)
        self.pixels = nn.Conv2d(4, 2, 1)
        self.form = form

    def forward(self, image: Tensor) -> Any:
        x = self.conv(image).relu()
        return self.form(self.classes(x.mean((2, 3))), self.pixels(x))


def test_names_of_outputs() -> None:
    one, two = torch.zeros(1), torch.zeros(2)
    assert list(flatten_outputs(one)) == ["output"]
    assert list(flatten_outputs([one, (two, None)])) == ["0", "1.0"]
    assert list(flatten_outputs({"out": one, "aux": [two, 3, "text"]})) == ["out", "aux.0"]
    assert list(flatten_outputs(Pair(one, {"a": two}))) == ["left", "right.a"]
    assert list(flatten_outputs(OrderedDict(loss=None, logits=one))) == ["logits"]
    assert list(flatten_outputs(Answer(one, Answer(two)))) == ["logits", "features.logits"]
    assert flatten_outputs(None) == {} and flatten_outputs({1: 2}) == {}
    endless: list[Any] = [one]
    endless.append(endless)
    assert len(flatten_outputs(endless)) < 50


def test_outputs_are_picked_by_name_or_position() -> None:
    names = ("out", "aux", "0")
    assert pick_outputs(names, None, "Net") == names
    assert pick_outputs(names, ["aux", "out"], "Net") == ("aux", "out")
    # A name goes before a position.
    assert pick_outputs(names, ["0", "1"], "Net") == ("0", "aux")
    with pytest.raises(ModelError, match=r"Net: model.outputs: there is no output 'masks'; outputs are out, aux, 0"):
        pick_outputs(names, ["masks"], "Net")
    with pytest.raises(ModelError, match="there is no output '7'"):
        pick_outputs(names, ["7"], "Net")
    with pytest.raises(ModelError, match="'1' asks for output aux a second time"):
        pick_outputs(names, ["aux", "1"], "Net")


@pytest.mark.parametrize(
    ("form", "name"),
    [
        (lambda classes, pixels: {"logits": classes, "map": pixels}, "logits"),
        (lambda classes, pixels: (pixels, classes), "1"),
        (lambda classes, pixels: Answer(classes, [pixels]), "logits"),
        (lambda classes, pixels: Pair({"map": pixels}, classes), "right"),
        (lambda classes, pixels: [classes], "0"),
    ],
)
def test_the_task_finds_its_output(form: Callable[[Tensor, Tensor], Any], name: str) -> None:
    model = Backbone(form)
    parts = cut(model, "classification", InputSpec(size=SIZE))
    stage = parts.stages["main"]
    assert stage.outputs == (name,) and parts.decode == ClassificationDecode(classes=5)
    image = torch.rand(3, 3, *SIZE)
    with torch.no_grad():
        (found,) = as_tuple(stage.module(image))
        torch.testing.assert_close(found, model.classes(model.conv(image).relu().mean((2, 3))))


def test_outputs_of_the_workload_and_raw() -> None:
    model = Backbone(lambda classes, pixels: {"logits": classes, "map": pixels, "more": pixels.argmax(1)})
    spec = InputSpec(size=SIZE)
    parts = cut(model, "segmentation", spec)
    assert parts.decode == SegmentationDecode(output="map", classes=2, activation="softmax")
    numbers = cut(model, "segmentation", spec, OutputWords(outputs=["more"]))
    assert numbers.decode == SegmentationDecode(output="more", classes=2, class_numbers=True)
    raw = cut(model, "raw", spec)
    assert raw.decode == RawDecode() and raw.stages["main"].outputs == ("logits", "map", "more")
    assert cut(model, "raw", spec, OutputWords(outputs=["2", "logits"])).stages["main"].outputs == ("more", "logits")
    with pytest.raises(ModelError, match=r"Backbone: model.outputs: there is no output 'boxes'; outputs are logits"):
        cut(model, "raw", spec, OutputWords(outputs=["boxes"]))
    with pytest.raises(ModelError, match=r"no decoder for .*classification.*map float32 \[1, 2, 15, 15\]"):
        cut(model, "classification", spec, OutputWords(outputs=["map"]))


def test_nothing_to_read() -> None:
    with pytest.raises(ModelError, match="Backbone returns no tensor but NoneType"):
        cut(Backbone(lambda classes, pixels: None), "raw", InputSpec(size=SIZE))
    one_row = Backbone(lambda classes, pixels: classes[:1])
    with pytest.raises(ModelError, match=r"output output has shape \[1, 5\] for 2 images; one row per image is needed"):
        cut(one_row, "classification", InputSpec(size=SIZE))


def test_layers_of_dropped_outputs_are_left_out_and_named() -> None:
    model = Backbone(lambda classes, pixels: {"logits": classes, "map": pixels})
    model.register_parameter("again", cast(nn.Parameter, model.classes.weight))
    stage = cut(model, "classification", InputSpec(size=SIZE)).stages["main"]
    graph = export_stages(stage, "query door")
    clean(graph, set(model.state_dict()))
    assert "pixels.weight" not in graph.graph.initializers and [port.name for port in graph.graph.outputs] == ["logits"]
    # The classifier's weight has two names, and is used under one of them.
    assert unused_parameters(stage.module, [graph]) == ("pixels.weight", "pixels.bias")


class Detr(nn.Module):
    """Stand-in for a detector with object queries."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 8, 8, 8)
        self.classes, self.boxes = nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, image: Tensor) -> dict[str, Any]:
        queries = self.backbone(image).flatten(2).transpose(1, 2)
        return {"logits": self.classes(queries) * 9, "pred_boxes": self.boxes(queries).sigmoid(), "hidden": [queries]}


class Yolo(nn.Module):
    """Stand-in for a detector that returns decoded boxes ``[N, 4 + C, A]``, and its levels."""

    def forward(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        height, width = image.shape[2] // 8, image.shape[3] // 8
        places = height * width + height * width // 4 + height * width // 16
        values = image.mean((1, 2, 3), keepdim=True)[:, 0].expand(-1, 9, places).sigmoid()
        return torch.cat([values[:, :4] * image.shape[3], values[:, 4:]], 1), [image]


def test_detectors_are_recognised() -> None:
    parts = cut(Detr(), "detection", InputSpec(size=SIZE), OutputWords(labels=["a", "b", "c"]))
    assert parts.decode == DetrDecode(logits="logits", boxes="pred_boxes", activation="softmax", classes=3)
    assert parts.stages["main"].outputs == ("logits", "pred_boxes")
    yolo = cut(Yolo(), "detection", InputSpec(size=(64, 64)))
    assert isinstance(yolo.decode, GridDecode) and yolo.decode.classes == 5 and yolo.decode.transposed
    # A YOLO that says nothing of its input gets the input of its family, not ImageNet's.
    assert yolo.stages["main"].outputs == ("0",)
    assert yolo.input.fit == "letterbox-center" and yolo.input.mean == (0.0,) * 3
    wanted = InputSpec.model_construct(_fields_set={"size", "fit"}, size=(64, 64), fit="stretch")
    assert cut(Yolo(), "detection", wanted).input.fit == "stretch"
