"""Tests of labelling the objects of a camera, and of the data sets that are made of the labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import camera_sets
import cv2
import numpy as np
import pytest
import torch
from camera_labels import Frame, SeenBoxes, detect, follow, join_views, label_frames, one_class
from camera_sets import (
    Camera,
    Scene,
    label_camera,
    link_feed,
    read_scenes,
    window_class,
    write_judged,
    write_scenes,
    write_windows,
)
from judge_parts import judge_parts
from train_queries import augment, load_windows

from gemel.workload import load_workload
from gemel.workload.data import load_data
from gemel.workload.zoo.ssdlite import SsdMobileNetV2, ssd_mobilenet_v2, ssdlite_mobilenet_v2


def _boxes(*rows: tuple[float, ...]) -> SeenBoxes:
    return np.array(rows, np.float32).reshape(-1, 5)


@pytest.mark.parametrize("make", [ssdlite_mobilenet_v2, ssd_mobilenet_v2])
def test_one_class_of_a_detector_has_the_scores_that_it_had(make: Any) -> None:
    torch.manual_seed(0)
    whole, one = make(num_classes=3).eval(), make(num_classes=1).eval()
    one.load_state_dict(one_class(whole.state_dict(), 3, 1))
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        (scores, boxes), (own, same) = whole(image), one(image)
    torch.testing.assert_close(own, scores[..., [0, 2]])
    torch.testing.assert_close(same, boxes)


def test_views_of_a_frame_are_joined_by_the_views_that_show_all_of_an_object() -> None:
    areas = [(0, 0, 100, 100), (0, 0, 100, 100), (0, 0, 60, 60)]
    small, large = (10, 10, 20, 20), (20, 20, 90, 90)
    cut = (40, 40, 60, 60)
    seen = [_boxes((*large, 0.9)), _boxes((*large, 0.7)), _boxes((*small, 0.8), (*cut, 0.9))]
    found = join_views(areas, seen)
    # The part of the frame alone finds the small object; the box at its inner edge may be cut off.
    np.testing.assert_allclose(found, _boxes((*large, 0.8), (*small, 0.8)), atol=1e-5)
    # An object that one of two views of the whole frame finds has half the score.
    np.testing.assert_allclose(join_views(areas[:2], [_boxes((*large, 0.9)), _boxes()]), _boxes((*large, 0.45)))
    assert not len(join_views(areas[:2], [_boxes((*large, 0.3)), _boxes()]))


def test_objects_are_followed_over_gaps_and_doubtful_ones_dropped() -> None:
    def at(x: float, score: float) -> tuple[float, ...]:
        return (x, 0, x + 10, 20, score)

    sure = {0: at(0, 0.3), 1: at(2, 0.8), 3: at(6, 0.4)}
    never_sure = dict.fromkeys(range(6), (50, 0, 60, 20, 0.4))
    too_short = {4: (80, 0, 90, 20, 0.9), 5: (80, 0, 90, 20, 0.9)}
    parts = (sure, never_sure, too_short)
    seen = [_boxes(*(part[frame] for part in parts if frame in part)) for frame in range(6)]
    found = follow(seen)
    expected = [at(0, 0.3), at(2, 0.8), at(4, 0.4), at(6, 0.4)]
    for boxes, box in zip(found, expected, strict=False):
        np.testing.assert_allclose(boxes, _boxes(box), atol=1e-5)
    assert [len(boxes) for boxes in found] == [1, 1, 1, 1, 0, 0]
    # After three frames without a sighting it is another object, and neither is seen often enough.
    apart = [_boxes(at(0, 0.9)), _boxes(at(0, 0.9)), _boxes(), _boxes(), _boxes(), _boxes(at(0, 0.9))]
    assert not any(len(boxes) for boxes in follow(apart))


class _Bright(SsdMobileNetV2):
    """Detector that finds bright squares of about 40 pixels in an input of 100 x 100."""

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        _, tensors = self.decode((image.shape[2], image.shape[3]))
        anchors = torch.from_numpy(tensors["anchors"])
        logits = torch.full((len(image), len(anchors), 2), -20.0)
        boxes = torch.zeros(len(image), len(anchors), 4)
        for row, plane in enumerate(image[:, 0]):
            bright = (plane > 0.5).nonzero()
            if len(bright):
                (top, left), (bottom, right) = bright.amin(0).tolist(), (bright.amax(0) + 1).tolist()
                box = torch.tensor([left, top, right, bottom], dtype=torch.float32)
                near = (anchors - box).abs().sum(1).argmin()
                size, whole = anchors[near, 2:] - anchors[near, :2], box[2:] - box[:2]
                middle = ((box[:2] + box[2:]) - (anchors[near, :2] + anchors[near, 2:])) / 2 / size
                logits[row, near, 1] = 4.0
                boxes[row, near] = torch.cat([middle * 10, (whole / size).log() * 5])
        return logits, boxes


def _frame(x: int, y: int = 80) -> Frame:
    """Return a dark frame of 300 x 200 pixels with a bright square of 40 pixels whose upper left corner is given."""
    frame = np.zeros((200, 300, 3), np.uint8)
    frame[y : y + 40, x : x + 40] = 255
    return frame


def test_a_detector_finds_boxes_in_pixels_of_the_frame() -> None:
    model = _Bright(1, lite=False).eval()
    (found,) = detect(model, [_frame(100)], 0.3)
    np.testing.assert_allclose(found[:, :4], [[100, 80, 140, 120]], atol=2)
    labelled = label_frames(model, [_frame(100 + 4 * step) for step in range(4)])
    for step, boxes in enumerate(labelled):
        np.testing.assert_allclose(boxes[:, :4], [[100 + 4 * step, 80, 140 + 4 * step, 120]], atol=4)


_CAMERA = Camera("gate", "gate.avi", "Car", "car", 2, False, "gate-cars", 1.2, most=30)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the labelled frames ``scenes`` of a moving square, and their ``windows``."""
    folder = tmp_path_factory.mktemp("camera")
    video = cv2.VideoWriter(str(folder / "gate.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (300, 200))
    for step in range(64):
        video.write(_frame(20 + 3 * step))
    video.release()
    camera = Camera(**{**_CAMERA.__dict__, "video": str(folder / "gate.avi")})
    label_camera(camera, _Bright(1, lite=False).eval(), folder / "labels.json")
    write_scenes(camera, folder / "labels.json", folder / "scenes")
    write_windows(camera, folder / "scenes", folder / "windows", {"train": 20, "val": 8, "test": 8})
    return folder


def test_parts_of_a_video_are_apart_in_time(folder: Path) -> None:
    numbers = {}
    for part in ("train", "val", "test"):
        content = json.loads((folder / "scenes" / part / "annotations.json").read_text())
        numbers[part] = [each["id"] for each in content["images"]]
        assert content["categories"] == [{"id": 1, "name": "car"}]
    # Every second one of the first 60 frames, in three stretches of ten.
    assert numbers["train"] == [*range(0, 12, 2), *range(20, 32, 2), *range(40, 52, 2)]
    assert numbers["val"] == [12, 14, 32, 34, 52, 54]
    assert numbers["test"] == [18, 38, 58]


def test_labelled_frames_are_read_as_a_data_set(folder: Path) -> None:
    scenes = read_scenes(folder / "scenes" / "train")
    for number, scene in enumerate(scenes):
        left = 20 + 3 * (20 * (number // 6) + 2 * (number % 6))
        np.testing.assert_allclose(scene.boxes, [[left, 80, left + 40, 120]], atol=4)
    (folder / "w.yaml").write_text(
        "schema_version: '1'\nfeeds: {gate: {source: scenes/val/images}}\nqueries:\n- name: cars\n  feed: gate\n"
        "  task: detection\n  labels: [car]\n  data: {train: scenes/train, val: scenes/val}\n"
        "  model: {factory: 'gemel.workload.zoo.ssdlite:ssd_mobilenet_v2', args: {num_classes: 1}}\n"
    )
    workload = load_workload(folder / "w.yaml")
    train = load_data(workload.queries[0], workload, ssd_mobilenet_v2(1).input_defaults(), 1).train
    assert train.boxes is not None
    assert [len(each) for each in train.boxes] == [1] * len(scenes)


def test_windows_are_in_folders_by_class(folder: Path) -> None:
    images, labels = load_windows(folder / "windows" / "train", _CAMERA.classes)
    assert images.shape[1:] == (3, 128, 128)
    counts = [int((labels == number).sum()) for number in range(3)]
    assert 0 < min(counts) <= max(counts) <= 20
    bright = (images[:, 0] > 128).float().mean((1, 2))
    assert float(bright[labels == 0].max()) < 0.06
    assert float(bright[labels == 1].mean()) < float(bright[labels == 2].mean())
    feed = link_feed(folder / "windows")
    assert len(list(feed.iterdir())) == len(load_windows(folder / "windows" / "val", _CAMERA.classes)[1])
    assert {path.name[:5] for path in list(feed.iterdir())} >= {"00000", "00001"}
    # A second call keeps what is there.
    before = (folder / "windows").stat().st_mtime_ns
    write_windows(_CAMERA, folder / "scenes", folder / "windows", {})
    assert (folder / "windows").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("counts", "boxes", "expected"),
    [
        (True, [], "none"),
        (True, [[10, 10, 20, 20]], "one"),
        (True, [[10, 10, 20, 20], [50, 50, 60, 60]], "several"),
        (True, [[90, 10, 110, 20]], None),
        (True, [[10, 10, 20, 20], [95, 10, 115, 20]], None),
        (True, [[99, 10, 139, 20]], "none"),
        (False, [[10, 10, 20, 20]], "whole"),
        (False, [[90, 10, 110, 20]], "part"),
        (False, [[92, 10, 102, 20]], None),
        (False, [[200, 10, 210, 20]], "none"),
    ],
)
def test_windows_that_are_no_clear_case_have_no_class(
    counts: bool, boxes: list[list[float]], expected: str | None
) -> None:
    camera = Camera("a", "a.avi", "Car", "car", 1, counts, "a", 1.0)
    assert window_class(camera, np.array(boxes, np.float32).reshape(-1, 4), (0, 0, 100, 100)) == expected


def test_augmented_boxes_stay_on_their_objects() -> None:
    rng = np.random.default_rng(0)
    scene = Scene(_frame(100), np.array([[100, 80, 140, 120]], np.float32))
    mirrored = 0
    for _ in range(30):
        made = augment(scene, rng)
        height, width = made.frame.shape[:2]
        assert height >= 0.69 * 200
        assert width >= 0.69 * 300
        for x1, y1, x2, y2 in made.boxes.round().astype(int).tolist():
            assert 0 <= x1 < x2 <= width
            assert 0 <= y1 < y2 <= height
            assert made.frame[y1 + 1 : y2 - 1, x1 + 1 : x2 - 1].min() > 128
        mirrored += int(len(made.boxes) and made.boxes[0, 0] > 110)
    assert 0 < mirrored < 30
    # Of an object at the edge of the part, less than two fifths may be left.
    edge = Scene(_frame(0), np.array([[0, 80, 40, 120]], np.float32))
    assert {len(augment(edge, rng).boxes) for _ in range(30)} == {0, 1}


def test_a_merge_is_judged_by_every_frame_of_the_last_two_parts(folder: Path) -> None:
    camera = Camera(**{**_CAMERA.__dict__, "video": str(folder / "gate.avi")})
    write_judged(camera, _Bright(1, lite=False).eval(), folder / "judge")
    content = json.loads((folder / "judge" / "annotations.json").read_text())
    expected = [*range(12, 16), *range(32, 36), *range(52, 56), *(17, 18, 19), *(37, 38, 39), *(57, 58, 59)]
    assert [each["id"] for each in content["images"]] == expected
    assert len(read_scenes(folder / "judge")) == len(content["images"])
    windows = judge_parts(folder / "windows")
    for name in camera.classes:
        both = [each for part in ("val", "test") for each in (folder / "windows" / part / name).iterdir()]
        assert len(list((windows / name).iterdir())) == len(both)


def test_parts_leave_something_out_between_them() -> None:
    edges = [edge for part in camera_sets.PARTS.values() for edge in part]
    assert edges == sorted(edges)
    assert len(set(edges)) == len(edges)
