"""Recognition of detectors by the shapes and values of their outputs, by metadata, and by the workload's word."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gemel.bundles.decode_specs import (
    CenterFaceDecode,
    DetrDecode,
    EndToEndDecode,
    FaceGridDecode,
    GflDecode,
    GridDecode,
    TripletDecode,
    YoloxDecode,
)
from gemel.compiler.recognition import Evidence, MeasuredOutput, Recognised, read_metadata, recognise_outputs
from gemel.errors import ModelError

RNG = np.random.default_rng(0)
SIZE = (64, 96)
CELLS = 8 * 12 + 4 * 6 + 2 * 3
ULTRALYTICS = {"author": "Ultralytics", "stride": "32", "names": "{0: 'cat', 1: 'dog'}"}


def recognise(
    outputs: Mapping[str, NDArray[Any]], task: str = "detection", metadata: Mapping[str, str] | None = None, **said: Any
) -> Recognised:
    """Recognise outputs with these values."""
    measured = tuple(MeasuredOutput(name, np.asarray(values)) for name, values in outputs.items())
    return recognise_outputs(Evidence("m.onnx", task, measured, SIZE, read_metadata(metadata or {}), **said))


def scores(*shape: int) -> NDArray[np.float32]:
    """Return values from 0 to 1."""
    return RNG.random(shape, np.float32)


def logits(*shape: int) -> NDArray[np.float32]:
    """Return values far below 0 and above 1."""
    return (RNG.standard_normal(shape) * 5).astype(np.float32)


def centres(kinds: int = 1) -> NDArray[np.float32]:
    """Return boxes ``[A, 4]`` in pixels, each near its cell."""
    rows = []
    for stride in (8, 16, 32):
        for _ in range(kinds):
            y, x = np.mgrid[: SIZE[0] // stride, : SIZE[1] // stride]
            rows.append(np.stack([x.ravel(), y.ravel(), np.ones(x.size), np.ones(x.size)], 1) * stride + 4)
    return np.concatenate(rows).astype(np.float32)


def grid(columns: int, kinds: int = 1, objectness: NDArray[Any] | None = None) -> NDArray[np.float32]:
    """Return ``[1, A, 4 + columns]``: boxes in pixels, then values from 0 to 1."""
    boxes = centres(kinds)
    rest = scores(len(boxes), columns)
    if objectness is not None:
        rest[:, 0] = objectness
    return np.concatenate([boxes, rest], 1)[None]


def spec(found: Recognised, kind: type[Any]) -> Any:
    assert isinstance(found.decode, kind)
    return found.decode


def test_yolov8() -> None:
    found = recognise({"output0": grid(5).transpose(0, 2, 1)})
    decode = spec(found, GridDecode)
    assert (decode.transposed, decode.objectness, decode.classes, decode.activation) == (True, False, 5, "none")
    assert not decode.normalized
    assert (found.input["fit"], found.input["pad"]) == ("letterbox-center", 114 / 255)


def test_yolov5_has_three_places_per_cell_and_an_objectness() -> None:
    decode = spec(recognise({"output": grid(6, kinds=3)}), GridDecode)
    assert (decode.transposed, decode.objectness, decode.classes) == (False, True, 5)


def test_scores_before_the_sigmoid() -> None:
    values = grid(5).transpose(0, 2, 1).copy()
    values[:, 4:] = logits(1, 5, CELLS)
    assert spec(recognise({"o": values}), GridDecode).activation == "sigmoid"


def test_a_named_grid_may_have_any_number_of_places() -> None:
    values = np.concatenate([logits(1, 4, 77), scores(1, 3, 77)], 1)
    with pytest.raises(ModelError, match=r"no decoder for task detection with outputs o float32 \[1, 7, 77\].*yolov8"):
        recognise({"o": values})
    assert spec(recognise({"o": values}, decode="yolov8"), GridDecode).classes == 3
    assert spec(recognise({"o": values.transpose(0, 2, 1)}, decode="yolov5"), GridDecode).classes == 2


def test_masks_are_the_last_columns() -> None:
    outputs = {"output0": grid(2 + 8).transpose(0, 2, 1), "output1": logits(1, 8, 16, 24)}
    metadata = {**ULTRALYTICS, "task": "segment"}
    decode = spec(recognise(outputs, "segmentation", metadata), GridDecode)
    assert (decode.classes, decode.masks, decode.prototypes) == (2, 8, "output1")
    # Boxes alone need no masks, but their columns are there.
    decode = spec(recognise(outputs, "detection", metadata), GridDecode)
    assert (decode.classes, decode.masks, decode.prototypes) == (2, 8, None)


@pytest.mark.parametrize("metadata", [{}, {**ULTRALYTICS, "task": "pose", "kpt_shape": "[4, 3]", "names": "{0: 'a'}"}])
def test_keypoints(metadata: dict[str, str]) -> None:
    values = grid(1 + 12).transpose(0, 2, 1)
    decode = spec(recognise({"output0": values}, "pose", metadata), GridDecode)
    assert (decode.classes, decode.keypoints, decode.keypoint_values) == (1, 4, 3)
    with pytest.raises(ModelError, match="no decoder for task pose"):
        recognise({"output0": grid(1).transpose(0, 2, 1)}, "pose")


def test_yolox_and_yolov6_are_told_apart_by_their_boxes() -> None:
    relative = np.concatenate([scores(1, CELLS, 4) * 2 - 0.5, scores(1, CELLS, 6)], 2)
    found = recognise({"o": relative})
    assert spec(found, YoloxDecode).classes == 5
    assert (found.input["color"], found.input["scale"], found.input["pad"]) == ("bgr", 1.0, 114.0)
    found = recognise({"o": grid(6, objectness=np.ones(CELLS))})
    assert spec(found, GridDecode).objectness
    assert found.input["scale"] == 1 / 255
    assert recognise({"o": grid(6)}).input["scale"] == 1.0  # a YOLOX exported with its decoder


def test_boxes_and_scores_in_two_outputs() -> None:
    corners = (
        centres() + np.array([-9, -9, 9, 9], np.float32) + np.concatenate([np.zeros((CELLS, 2)), centres()[:, :2]], 1)
    )
    outputs = {"boxes": corners[None].astype(np.float32), "scores": scores(1, CELLS, 5)}
    decode = spec(recognise(outputs), GridDecode)
    assert (decode.output, decode.boxes, decode.box, decode.classes) == ("scores", "boxes", "xyxy", 5)
    assert decode.every_class and not decode.objectness
    metadata = {"model_family": "yolonas", "names": '{"0": "a", "1": "b", "2": "c", "3": "d", "4": "e"}'}
    found = recognise(outputs, metadata=metadata)
    assert not spec(found, GridDecode).every_class and found.input["fit"] == "letterbox-center"
    assert recognise(outputs, decode="pp-yoloe").input["mean"] == (0.485, 0.456, 0.406)
    # Boxes that are relative to their cells would need the family's anchors; the scores alone are no YOLOX.
    with pytest.raises(ModelError, match="no decoder for task detection"):
        recognise({**outputs, "boxes": logits(1, CELLS, 4)})


def test_rows_without_an_objectness_are_told_by_the_number_of_classes() -> None:
    names = {"names": "['a', 'b', 'c', 'd', 'e']"}
    decode = spec(recognise({"output": grid(5)}, metadata=names), GridDecode)
    assert (decode.transposed, decode.objectness, decode.classes) == (False, False, 5)
    assert spec(recognise({"output": grid(80)}), GridDecode).classes == 80
    assert spec(recognise({"output": grid(6)}, metadata=names), GridDecode).objectness
    found = recognise({"output": grid(5)}, metadata={**names, "model_family": "picodet"})
    assert spec(found, GridDecode).nms_threshold == 0.6 and found.input["fit"] == "stretch"


def test_candidates_of_efficientdet_are_not_final() -> None:
    rows = np.concatenate([scores(1, 5000, 5), np.ones((1, 5000, 1), np.float32)], 2)
    with pytest.raises(ModelError, match="no decoder for task detection"):
        recognise({"output": rows})
    assert spec(recognise({"output": rows[:, :300]}), EndToEndDecode)


@pytest.mark.parametrize(("task", "words"), [("obb", "oriented detection"), ("depth", "depth estimation")])
def test_tasks_without_a_decoder(task: str, words: str) -> None:
    metadata = {**ULTRALYTICS, "task": task}
    with pytest.raises(ModelError, match=f"the model is for {words}.*task: raw reports outputs as they are"):
        recognise({"output0": grid(3).transpose(0, 2, 1)}, metadata=metadata)


def test_end_to_end() -> None:
    rows = np.zeros((1, 30, 6), np.float32)
    rows[0, :3] = [[10, 20, 40, 60, 0.9, 1], [10, 22, 40, 60, 0.8, 0], [1, 2, 4, 6, 0.3, 1]]
    for metadata in ({}, {**ULTRALYTICS, "task": "detect", "end2end": "True"}):
        decode = spec(recognise({"o": rows}, metadata=metadata), EndToEndDecode)
        assert (decode.columns, decode.classes) == ("xyxy-score-class", 2 if metadata else 80)


def test_exports_with_nms_are_told_by_metadata() -> None:
    metadata = {**ULTRALYTICS, "task": "segment", "args": "{'nms': True, 'half': False}"}
    # As many rows as places, so that only the metadata tells.
    outputs = {"output0": np.zeros((1, CELLS, 6 + 8), np.float32), "output1": logits(1, 8, 16, 24)}
    decode = spec(recognise(outputs, "segmentation", metadata), EndToEndDecode)
    assert (decode.classes, decode.masks, decode.prototypes) == (2, 8, "output1")


def test_end_to_end_of_yolov7_has_no_batch_axis() -> None:
    rows = np.array([[0, 1, 2, 30, 40, 3, 0.9]], np.float32)
    for values in (rows, rows[:0]):
        decode = spec(recognise({"output": values}), EndToEndDecode)
        assert decode.columns == "batch-xyxy-class-score"


def test_detr_and_its_descendants() -> None:
    def of(queries: int, columns: int, **said: Any) -> DetrDecode:
        outputs = {"logits": logits(1, queries, columns), "pred_boxes": scores(1, queries, 4)}
        decode: DetrDecode = spec(recognise(outputs, **said), DetrDecode)
        return decode

    assert (of(100, 92).activation, of(100, 92).classes) == ("softmax", 91)
    assert (of(300, 80).activation, of(300, 80).classes) == ("sigmoid", 80)
    assert of(300, 6, labels=["a"] * 5).activation == "softmax"
    assert of(100, 6, activation="sigmoid").classes == 6
    assert of(100, 4).logits == "logits"  # four columns like boxes: the names tell
    assert recognise({"logits": logits(1, 300, 80), "boxes": scores(1, 300, 4)}, decode="rt-detr").input == {
        "fit": "stretch"
    }


def test_rt_detr_of_ultralytics() -> None:
    decode = spec(recognise({"output0": scores(1, 300, 6)}, metadata={**ULTRALYTICS, "task": "detect"}), GridDecode)
    assert (decode.normalized, decode.nms, decode.classes) == (True, False, 2)


def test_triplets() -> None:
    boxes = np.array([[[1, 2, 30, 40], [5, 6, 50, 60]]], np.float32)
    labels, confidence = np.array([[3, 1]]), np.array([[0.9, 0.2]], np.float32)
    found = recognise({"labels": labels, "boxes": boxes, "scores": confidence})
    assert spec(found, TripletDecode).first_class == 0
    found = recognise({"boxes": boxes[0], "labels": labels[0], "scores": confidence[0]})  # torchvision's own export
    assert spec(found, TripletDecode).first_class == 1
    assert spec(recognise({"b": boxes[0, :0], "l": labels[0, :0], "s": confidence[0, :0]}), TripletDecode).boxes == "b"
    number = np.array([[2]], np.int32)
    floats = labels.astype(np.float32)
    trt = {"num_dets": number, "det_boxes": boxes, "det_scores": confidence, "det_classes": floats}
    assert spec(recognise(trt), TripletDecode).labels == "det_classes"


def test_nanodet_is_one_joint_output() -> None:
    for classes, labels in ((80, None), (3, ["a", "b", "c"])):
        values = np.concatenate([scores(1, CELLS, classes), logits(1, CELLS, 32)], 2)
        found = recognise({"o": values}, labels=labels)
        decode = spec(found, GflDecode)
        assert (decode.scores, decode.distances, decode.reg_max, decode.classes) == (("o",), (), 7, classes)
        assert (decode.cell_offset, found.input["color"]) == (0.5, "bgr")


def test_picodet_has_two_outputs_per_level() -> None:
    cells = [8 * 12, 4 * 6, 2 * 3, 1 * 2]
    outputs = {f"s{i}": scores(1, count, 5) for i, count in enumerate(cells)}
    outputs |= {f"d{i}": logits(1, count, 32) for i, count in enumerate(cells)}
    decode = spec(recognise(outputs), GflDecode)
    assert decode.scores == ("s0", "s1", "s2", "s3")
    assert (decode.distances[3], decode.strides, decode.reg_max, decode.classes) == ("d3", (8, 16, 32, 64), 7, 5)


def test_faces() -> None:
    rows = [2 * 8 * 12, 2 * 4 * 6, 2 * 2 * 3]
    scrfd = {f"{name}{i}": kind(count, columns) for name, kind, columns in (
        ("s", scores, 1), ("b", logits, 4), ("k", logits, 10)) for i, count in enumerate(rows)}  # fmt: skip
    decode = spec(recognise(scrfd), FaceGridDecode)
    assert (decode.style, decode.scores, decode.points, decode.kinds) == (
        "scrfd",
        ("s0", "s1", "s2"),
        ("k0", "k1", "k2"),
        2,
    )
    assert decode.activation == "none"
    without = {name: values for name, values in scrfd.items() if name[0] != "k"}
    assert spec(recognise(without), FaceGridDecode).points == ()

    count = sum(rows)
    retina = {"loc": logits(1, count, 4), "conf": logits(1, count, 2), "landms": logits(1, count, 10)}
    decode = spec(recognise(retina), FaceGridDecode)
    assert (decode.style, decode.activation, decode.boxes) == ("retinaface", "softmax", ("loc",))
    assert (decode.landmarks, decode.min_sizes[0]) == (5, (16, 32))
    plates = spec(recognise({**retina, "landms": logits(1, count, 8)}), FaceGridDecode)
    assert (plates.landmarks, plates.min_sizes[0]) == (4, (24, 48))

    yunet = {f"{name}_{i}": kind(1, half // 2, columns) for name, kind, columns in (
        ("cls", scores, 1), ("obj", scores, 1), ("bbox", logits, 4), ("kps", logits, 10)
    ) for i, half in enumerate(rows)}  # fmt: skip
    decode = spec(recognise(yunet), FaceGridDecode)
    assert (decode.style, decode.scores[0], decode.objectness[2]) == ("yunet", "cls_0", "obj_2")

    centerface = {str(index): logits(1, channels, 4, 4) for index, channels in enumerate((1, 2, 2, 10))}
    assert spec(recognise(centerface), CenterFaceDecode).offset == "2"


def test_the_task_of_the_metadata_counts() -> None:
    values = {"o": scores(1, 2)}
    with pytest.raises(ModelError, match=r"m\.onnx: the model is for classification.*not for detection; set task"):
        recognise(values, metadata={**ULTRALYTICS, "task": "classify"})
    with pytest.raises(ModelError, match=r"oriented detection.*task: raw"):
        recognise({"o": grid(6).transpose(0, 2, 1)}, metadata={**ULTRALYTICS, "task": "obb"})


def test_unknown_names_of_decoders() -> None:
    with pytest.raises(ModelError, match="decode: yolo8 is no decoder for task detection; did you mean yolov8"):
        recognise({"o": grid(5)}, decode="yolo8")
