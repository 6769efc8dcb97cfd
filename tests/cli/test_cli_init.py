"""Command ``gemel init``: the draft loads, has what files say about themselves, and compiles where they do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import save, write_video
from onnx import TensorProto, helper, numpy_helper
from tiny_models import tiny

from gemel.workload import load_workload
from gemel.workload.document.json_schema import workload_schema

Call = Callable[..., tuple[int, str, str]]


def write_onnx(
    path: Path,
    *outputs: tuple[str, list[int | str]],
    size: tuple[int | str, int | str] = (8, 8),
    metadata: dict[str, str] | None = None,
) -> Path:
    """Write a file with outputs of given names and shapes, all a mean of the image, and metadata."""
    nodes = [helper.make_node("ReduceMean", ["image"], ["mean"], axes=[2, 3], keepdims=0)]
    constants = []
    for name, shape in outputs:
        target = np.array([side if isinstance(side, int) else 1 for side in shape])
        constants.append(numpy_helper.from_array(target, f"{name}.shape"))
        nodes += [
            helper.make_node("ReduceMean", ["mean"], [f"{name}.one"], axes=[0, 1], keepdims=0),
            helper.make_node("Expand", [f"{name}.one", f"{name}.shape"], [name]),
        ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, *size])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    helper.set_model_props(model, metadata or {})
    onnx.save(model, path)
    return path


@pytest.fixture
def init(gemel: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: gemel("init", *arguments)


def test_nothing_given(init: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CAMERA", raising=False)
    code, out, err = init()
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "Next: gemel-compile workload.yaml -o bundle/"
    workload = load_workload("workload.yaml")
    assert workload.feeds["camera"].source == "rtsp://${CAMERA}/live"
    assert workload.queries[0].model.onnx == "model.onnx"
    assert Path("workload.yaml").read_text().startswith("# yaml-language-server: $schema=workload.schema.json\n")
    assert Path("workload.schema.json").read_text() == workload_schema()


def test_metadata_of_ultralytics(init: Call, tmp_path: Path) -> None:
    names = {0: "person", 1: "on", 2: "traffic light"}
    write_onnx(
        tmp_path / "yolo11n.onnx",
        ("output0", [1, 7, 4200]),
        size=("height", "width"),
        metadata={"task": "detect", "names": str(names), "imgsz": "[320, 640]", "stride": "32"},
    )
    write_video(tmp_path / "gate 1.mp4")
    code, _, err = init("yolo11n.onnx", "gate 1.mp4")
    assert (code, err) == (0, "")
    (query,) = load_workload("workload.yaml").queries
    assert (query.name, query.feed, query.task) == ("gate-1-yolo11n", "gate-1", "detection")
    assert query.labels == list(names.values())
    assert query.model.input.size == (320, 640)
    text = Path("workload.yaml").read_text()
    assert "the file says detect" in text and "imgsz in the file" in text
    assert max(map(len, text.splitlines())) <= 150


@pytest.mark.parametrize(
    ("outputs", "metadata", "task"),
    [
        ([("scores", [1, 3])], {}, "classification"),
        ([("embedding", [1, 128])], {}, "embedding"),
        ([("labels", [1, 5]), ("boxes", [1, 5, 4]), ("scores", [1, 5])], {}, "detection"),
        ([("output0", [1, 84, 21])], {}, "detection"),
        ([("masks", [1, 21, 8, 8])], {}, "segmentation"),
        ([("features", [1, 512, 2, 2])], {}, "embedding"),
        ([("text", [1, 40, 3])], {"character": "a\nb"}, "ocr"),
        ([("output0", [1, 56, 21])], {"task": "pose"}, "pose"),
        ([("output0", [1, 20, 21])], {"task": "obb"}, "raw"),
        ([("other", [1, 2, 3, 4, 5])], {}, "raw"),
        ([("output0", [1, 84, 21])], {"task": "detect", "names": "{" * 5000, "imgsz": "(1,"}, "detection"),
    ],
)
def test_tasks(
    init: Call, tmp_path: Path, outputs: list[tuple[str, list[int | str]]], metadata: dict[str, str], task: str
) -> None:
    write_onnx(tmp_path / "m.onnx", *outputs, size=(32, 32), metadata=metadata)
    code, out, err = init("m.onnx")
    assert (code, err) == (0, "") and "refused" not in out
    assert load_workload("workload.yaml").queries[0].task == task


def test_a_file_that_the_compiler_refuses(init: Call, tmp_path: Path) -> None:
    write_onnx(tmp_path / "m.onnx", ("output0", [1, 84, 20]), size=(32, 32), metadata={"task": "detect"})
    code, out, err = init("m.onnx")
    assert (code, err) == (0, "")
    assert "gemel-compile will not take m.onnx" in out and "output0 float32" in out
    assert load_workload("workload.yaml").queries[0].task == "detection"


@pytest.mark.parametrize(
    ("outputs", "comment"),
    [
        ([("age", [1, 1])], "a guess: one number as logit of yes; or raw, if it is an age or another quantity"),
        ([("gender", [1, 2]), ("mood", [1, 7])], "a guess: gender is read, of 2 outputs; model.outputs names another"),
        ([("a", [1, 3, 8, 8]), ("b", [1, 4, 8, 8])], "a guess: a is read, of 2 outputs; model.outputs names another"),
    ],
)
def test_a_guess_says_what_it_leaves_out(
    init: Call, tmp_path: Path, outputs: list[tuple[str, list[int | str]]], comment: str
) -> None:
    write_onnx(tmp_path / "m.onnx", *outputs)
    assert init("m.onnx")[0] == 0
    assert comment in Path("workload.yaml").read_text()


def test_names_that_are_no_yaml(init: Call, tmp_path: Path) -> None:
    metadata = {"names": "['no', 'a: b', '\\n', '#']", "task": "classify"}
    write_onnx(tmp_path / "a: #.onnx", ("x\n  evil: 1", [1, 2]), metadata=metadata)
    code, _, err = init("a: #.onnx")
    assert (code, err) == (0, "")
    (query,) = load_workload("workload.yaml").queries
    assert query.labels == ["no", "a: b", "\n", "#"]
    assert query.model.onnx == "a: #.onnx"


def test_every_model_on_every_feed(init: Call, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "1.png").touch()
    save(tiny(0), tmp_path / "w.safetensors")
    code, _, err = init(
        "tiny_models:TinyNet", "w.safetensors", "torchvision.models.detection:ssdlite320_mobilenet_v3_large",
        "pictures", "rtsp://${CAMERA}/1", "rtsp://user:secret@host/2", "/dev/video0", "-o", "deep/er/w.yaml",
    )  # fmt: skip
    assert (code, err) == (0, "")
    workload = load_workload("deep/er/w.yaml")
    assert {name: feed.source for name, feed in workload.feeds.items()} == {
        "pictures": "../../pictures",
        "camera": "rtsp://${CAMERA}/1",
        "camera-2": "rtsp://user:secret@host/2",
        "video0": "/dev/video0",
    }
    assert len(workload.queries) == 8
    assert {(query.model.factory, query.model.weights, query.task) for query in workload.queries} == {
        ("tiny_models:TinyNet", "../../w.safetensors", "classification"),
        ("torchvision.models.detection:ssdlite320_mobilenet_v3_large", None, "detection"),
    }


def test_the_draft_compiles(init: Call, gemel: Call, tmp_path: Path) -> None:
    write_video(tmp_path / "yard.mp4")
    save(tiny(0), tmp_path / "w.safetensors")
    write_onnx(tmp_path / "mean.onnx", ("embedding", [1, 16]), size=("h", "w"))
    assert init("tiny_models:TinyNet", "w.safetensors", "mean.onnx", "yard.mp4")[0] == 0
    code, out, err = gemel("compile", "workload.yaml", "-o", "bundle")
    assert code == 0, err
    inputs = [line for line in out.splitlines() if line.split()[:1] == ["input"]]
    assert inputs == [
        "   input  yard-TinyNet: 224 x 224 (height x width), NCHW float32, rgb, scale 1/255, mean [0.485, 0.456,"
        " 0.406], std [0.229, 0.224, 0.225] (ImageNet's), stretch; all: the model's defaults",
        "   input  yard-mean: 224 x 224 (height x width), NCHW float32, rgb, scale 1/255, mean 0, std 1, stretch;"
        " given: size; the rest: the model's defaults",
    ]


@pytest.mark.parametrize(
    ("config", "factory", "task"),
    [
        (
            {"model_type": "vit", "architectures": ["ViTForImageClassification"]},
            "transformers:ViTForImageClassification.from_pretrained",
            "classification",
        ),
        ({"model_type": "clip", "architectures": ["CLIPVisionModelWithProjection"]}, None, "embedding"),
        ({"model_type": "sam", "architectures": ["SamForMasks"]}, None, "raw"),
        ({"_model_class": "Unet", "classes": 3}, "segmentation_models_pytorch:from_pretrained", "segmentation"),
    ],
)
def test_folder_of_save_pretrained(
    init: Call, tmp_path: Path, config: dict[str, object], factory: str | None, task: str
) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "config.json").write_text(json.dumps(config))
    code, _, err = init("net")
    assert code == 2 and err.startswith("error: net: a folder without images")
    save(tiny(0), tmp_path / "net" / "model.safetensors")
    assert init("net")[0] == 0
    (query,) = load_workload(tmp_path / "workload.yaml").queries
    assert query.task == task and factory in (None, query.model.factory)
    assert query.model.args == {"pretrained_model_name_or_path": "./net"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.mp4"], "error: nowhere.mp4: no such file; allowed: an ONNX file, a factory (module:name), "),
        (["w.pt"], "error: w.pt: weights do not say what the model is; give its factory before: module:name"),
        (["broken.onnx"], "error: broken.onnx: not a valid ONNX file: "),
        (["empty"], "error: empty: a folder without images; allowed: "),
        (["notes.txt"], "error: notes.txt: neither a model nor a source of frames; allowed: "),
        (["package:nowhere/x.mp4"], "error: 'package:nowhere/x.mp4': package 'nowhere' is not installed"),
    ],
)
def test_mistakes(init: Call, tmp_path: Path, arguments: list[str], message: str) -> None:
    for name in ("w.pt", "broken.onnx", "notes.txt"):
        (tmp_path / name).write_bytes(b"\xff\xff\xff")
    (tmp_path / "empty").mkdir()
    before = sorted(path.name for path in tmp_path.iterdir())
    code, out, err = init(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith(message) and err.count("\n") == 1, err
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_an_older_file_is_kept(init: Call, tmp_path: Path) -> None:
    (tmp_path / "workload.yaml").write_text("mine")
    (tmp_path / "workload.schema.json").write_text("mine too")
    code, _, err = init()
    assert code == 2
    assert err == "error: workload.yaml: exists already; --force overwrites it, -o writes another file\n"
    assert (tmp_path / "workload.yaml").read_text() == "mine"
    assert init("--force")[0] == 0
    load_workload(tmp_path / "workload.yaml")
    assert (tmp_path / "workload.schema.json").read_text() == "mine too"


def test_the_schema_knows_the_draft(init: Call) -> None:
    """Check that an editor's schema has every key that a draft has."""
    assert init()[0] == 0
    schema = json.loads(Path("workload.schema.json").read_text())
    assert set(schema["properties"]) >= {"schema_version", "device", "sla", "feeds", "queries"}
    assert schema["additionalProperties"] is False
