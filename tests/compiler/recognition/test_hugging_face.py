"""Test what Hugging Face's files say: input, class names and activation."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx_graphs import N, tensor, write_graph

from gemel.bundles.decode_specs import DetrDecode
from gemel.bundles.manifest import InputSpec
from gemel.compiler.lowering.onnx_source import read_onnx
from gemel.compiler.recognition.hugging_face import hugging_face_input, hugging_face_names, read_processor_file
from gemel.workload.document.schema import Input

HALF = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
VIT = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": 96, "width": 128},
    "do_rescale": True,
    "rescale_factor": 0.00392156862745098,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def processor(folder: Path, *without: str, **changes: Any) -> dict[str, Any]:
    """Write a processor's file, and return the fields that are read from it."""
    content = {key: value for key, value in {**VIT, **changes}.items() if key not in without}
    (folder / "preprocessor_config.json").write_text(json.dumps(content))
    return read_processor_file(folder)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"size": (96, 128)}),
        ({"size": 224}, {"size": (224, 224)}),
        ({"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": 224}, {"size": (224, 224)}),
        ({"size": {"shortest_edge": 384}, "crop_pct": 0.875}, {"size": (384, 384)}),
        ({"size": {"shortest_edge": 800, "longest_edge": 1333}}, {"size": (800, 1333)}),
        ({"size": {"longest_edge": 1024}, "do_pad": True}, {"size": (1024, 1024), "fit": "letterbox"}),
        ({"do_rescale": False}, {"size": (96, 128), "scale": 1.0}),
        ({"do_normalize": False}, {"size": (96, 128), "mean": (0.0,) * 3, "std": (1.0,) * 3}),
        ({"do_resize": False}, {}),
        ({"size": {"height": 60000, "width": 60000}}, {}),
        ({"size": "large"}, {}),
    ],
)
def test_processors(tmp_path: Path, changes: dict[str, Any], expected: dict[str, Any]) -> None:
    assert processor(tmp_path, **changes) == {"scale": 1 / 255, **HALF, **expected}


def test_mobile_vit_has_a_mean_that_it_does_not_use(tmp_path: Path) -> None:
    found = processor(tmp_path, "do_normalize", do_flip_channel_order=True)
    assert found["color"] == "bgr" and found["mean"] == (0.0,) * 3


@pytest.mark.parametrize("text", ["", "[]", "{", '{"size": 3, "image_processor": []}', '{"tokenizer": 1}'])
def test_files_that_are_not_understood_say_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "preprocessor_config.json").write_text(text)
    assert read_processor_file(tmp_path) == {}
    assert read_processor_file(tmp_path / "nowhere") == {}


def test_a_model_without_a_processor_has_the_usual_input(tmp_path: Path) -> None:
    clip = hugging_face_input(SimpleNamespace(model_type="clip_vision_model", image_size=336), tmp_path)
    assert clip.size == (336, 336) and clip.mean[0] == pytest.approx(0.4815, abs=1e-4)
    # The position embeddings of DINOv2 are those of 518 pixels; its processor crops 224.
    assert hugging_face_input(SimpleNamespace(model_type="dinov2", image_size=518), None).size == (224, 224)
    assert hugging_face_input(SimpleNamespace(model_type="yolos", image_size=[512, 864]), None).size == (512, 864)
    assert hugging_face_input(SimpleNamespace(model_type="d_fine"), None) == InputSpec(size=(640, 640))


def test_names() -> None:
    assert hugging_face_names(SimpleNamespace(id2label={"0": "cat", "1": "dog"})) == {0: "cat", 1: "dog"}
    assert hugging_face_names(SimpleNamespace(id2label={0: "LABEL_0", 1: "LABEL_1"})) is None
    assert hugging_face_names(SimpleNamespace()) is None


@pytest.mark.parametrize("inside", ["", "onnx"])
@pytest.mark.parametrize("kind", ["rt_detr", "detr"])
def test_files_beside_an_onnx_file(tmp_path: Path, kind: str, inside: str) -> None:
    """An export of Optimum or for transformers.js has its class names, activation and input in files beside it."""
    rng = np.random.default_rng(0)
    arrays = {"logits": 3 * rng.standard_normal((1, 9, 3)), "boxes": rng.random((1, 9, 4))}
    (tmp_path / inside).mkdir(exist_ok=True)
    nodes = [N("ReduceMean", ["image"], ["m"], keepdims=0), N("Mul", ["m", "zero"], ["z"])]
    nodes += [N("Add", [name, "z"], [port]) for name, port in (("logits", "out"), ("boxes", "pred_boxes"))]
    weights = [tensor(name, array.astype(np.float32)) for name, array in arrays.items()]
    weights.append(tensor("zero", np.float32(0)))
    outputs = {"out": (1, 9, 3), "pred_boxes": (1, 9, 4)}
    path = write_graph(tmp_path / inside / "model.onnx", nodes, weights, outputs=outputs, image=("n", 3, "h", "w"))
    model = onnx.load(path)
    for node in model.graph.node:
        node.input[:] = ["pixel_values" if name == "image" else name for name in node.input]
    model.graph.input[0].name = "pixel_values"
    onnx.save(model, path)
    names = {"0": "car", "1": "bus"} | ({"2": "van"} if kind == "rt_detr" else {})
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "id2label": names}))
    processor(tmp_path, image_mean=[0.1, 0.2, 0.3])
    source = read_onnx(path, "detection", Input())
    assert isinstance(source.decode, DetrDecode)
    assert source.decode.activation == ("sigmoid" if kind == "rt_detr" else "softmax")
    assert source.labels == tuple(names.values())
    assert source.input == InputSpec(size=(96, 128), mean=(0.1, 0.2, 0.3), std=(0.5,) * 3)
    wanted = Input(size=(64, 64), mean=(0.0,) * 3, std=(1.0,) * 3)
    assert read_onnx(path, "detection", wanted).input == InputSpec(size=(64, 64))
