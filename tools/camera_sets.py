"""Make data sets of a fixed camera's video for detectors and classifiers, apart in time, labelled by a detector.

Each stretch of a video has a part for training, a later one to choose by, and a last one to confirm. The frames
between them are left out. What stands still for long is in all of them. A merge is judged by the last two together.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from camera_labels import Frame, SeenBoxes, label_frames
from numpy.typing import NDArray
from whole_folder import whole_folder

from gemel.frames.source import resolve
from gemel.workload.data.video import count_frames, pictures
from gemel.workload.zoo.ssdlite import SsdMobileNetV2

__all__ = [
    "PARTS",
    "Camera",
    "Scene",
    "label_camera",
    "link_feed",
    "read_scenes",
    "window_class",
    "write_judged",
    "write_scenes",
    "write_windows",
]

PARTS: Mapping[str, tuple[float, float]] = {"train": (0.0, 0.54), "val": (0.6, 0.76), "test": (0.82, 0.98)}
"""Part of a data set -> the fractions of each stretch of a video at which it begins and ends."""
_ANNOTATIONS = "annotations.json"
_WINDOW = 128
"""Side of the windows that classifiers look at, in pixels."""
_TRIES = 24
"""Number of windows tried in each frame."""
_NEAR = 0.6
"""Fraction of the windows that are placed around an object, for the others would mostly show none."""
_QUALITY = [cv2.IMWRITE_JPEG_QUALITY, 95]


@dataclass(frozen=True)
class Camera:
    """Fixed camera and the kind of object that its queries look for."""

    name: str
    video: str
    """Video file of the camera."""
    object: str
    """Class of the public detector that stands for the kind of object."""
    label: str
    """Name of the kind of object in the workload."""
    step: int
    """Number N such that every Nth frame of the video is used."""
    counts: bool
    """Whether windows are classified by the number of objects (none, one, several); otherwise by how much of an object
    is in them (none, part, whole)."""
    query: str
    """Name of the query that classifies windows."""
    side: float
    """Mean side of a window, as a multiple of the longer side of the median object."""
    most: int = 400
    """Maximum number of frames that are used."""
    stretches: int = 3
    """Number of stretches of time of the video that have all parts of a data set."""
    parts: Mapping[str, tuple[float, float]] = field(default_factory=lambda: PARTS)
    """Part of a data set -> the fractions of each stretch at which it begins and ends."""
    target: float = 0.95
    """Fraction of its original accuracy that the detector must keep."""

    @property
    def classes(self) -> tuple[str, str, str]:
        """Names of the classes of windows, in order of their numbers."""
        return ("none", "one", "several") if self.counts else ("none", "part", "whole")


@dataclass(frozen=True)
class Scene:
    """Labelled frame."""

    frame: Frame
    boxes: NDArray[np.float32]
    """Boxes of the objects, ``[K, 4]``, x1 y1 x2 y2 in pixels of the frame."""


def label_camera(camera: Camera, model: SsdMobileNetV2, target: Path) -> None:
    """Label the frames of a camera that are used, and write the labels as JSON: number of the frame -> boxes.

    Args:
        camera: the camera.
        model: detector with one class, the camera's, in eval mode.
        target: file to write; one that exists is kept as it is.
    """
    if target.exists():
        return
    source = resolve(camera.name, camera.video)
    count = count_frames(source, camera.name)
    numbers = list(range(0, count, camera.step))[: camera.most]
    labelled = label_frames(model, list(pictures(source, numbers, camera.name)))
    found = {number: boxes.round(2).tolist() for number, boxes in zip(numbers, labelled, strict=True)}
    target.parent.mkdir(parents=True, exist_ok=True)
    target.with_suffix(".part").write_text(json.dumps(found))
    target.with_suffix(".part").rename(target)


def write_scenes(camera: Camera, labels: Path, target: Path) -> None:
    """Write labelled frames of a camera as JPEG and COCO files into ``train``, ``val`` and ``test``.

    Args:
        camera: the camera.
        labels: file that :func:`label_camera` wrote.
        target: folder to make; one that exists is kept as it is.
    """
    if target.exists():
        return
    boxes = {
        int(number): np.array(found, np.float32).reshape(-1, 5)
        for number, found in json.loads(labels.read_text()).items()
    }
    numbers = list(boxes)
    frames = dict(zip(numbers, pictures(resolve(camera.name, camera.video), numbers, camera.name), strict=True))
    with whole_folder(target) as work:
        # Number of a frame -> its position in its stretch, from 0 to 1.
        places = {number: index * camera.stretches / len(numbers) % 1 for index, number in enumerate(numbers)}
        for part, (begin, end) in camera.parts.items():
            kept = [number for number, place in places.items() if begin <= place < end]
            _write_part(work / part, camera, {number: (frames[number], boxes[number]) for number in kept})


def write_judged(camera: Camera, model: SsdMobileNetV2, target: Path) -> None:
    """Label every frame in the times of ``val`` and ``test``, and write them in this order: a merge is judged by both.

    ``val`` and ``test`` themselves have every Nth frame. Lower bounds of an accuracy need more.

    Args:
        camera: the camera.
        model: detector with one class, the camera's, in eval mode.
        target: folder to make; one that exists is kept as it is.
    """
    if target.exists():
        return
    source = resolve(camera.name, camera.video)
    end = min(count_frames(source, camera.name), camera.most * camera.step)
    found: dict[int, tuple[Frame, SeenBoxes]] = {}
    for begin, stop in (camera.parts["val"], camera.parts["test"]):
        numbers = [number for number in range(end) if begin <= number * camera.stretches / end % 1 < stop]
        frames = list(pictures(source, numbers, camera.name))
        found |= dict(zip(numbers, zip(frames, label_frames(model, frames), strict=True), strict=True))
    with whole_folder(target) as work:
        _write_part(work, camera, found)


def _write_part(folder: Path, camera: Camera, frames: Mapping[int, tuple[Frame, SeenBoxes]]) -> None:
    """Write one part of a camera's frames, given by their numbers, with their boxes."""
    (folder / "images").mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (frame, boxes) in frames.items():
        name = f"{number:05}.jpg"
        cv2.imwrite(str(folder / "images" / name), frame, _QUALITY)
        height, width = frame.shape[:2]
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for x1, y1, x2, y2, _ in boxes.clip(0, [width, height, width, height, 1]).tolist():
            box = [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)]
            entry = {"image_id": number, "category_id": 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, **entry})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": camera.label}]}
    (folder / _ANNOTATIONS).write_text(json.dumps(content))


def read_scenes(folder: Path) -> list[Scene]:
    """Read one part of a camera's labelled frames, in order of time."""
    content = json.loads((folder / _ANNOTATIONS).read_text())
    boxes: dict[int, list[list[float]]] = {each["id"]: [] for each in content["images"]}
    for each in content["annotations"]:
        x, y, width, height = each["bbox"]
        boxes[each["image_id"]].append([x, y, x + width, y + height])
    scenes = []
    for each in content["images"]:
        frame = cv2.imread(str(folder / "images" / each["file_name"]))
        assert frame is not None
        scenes.append(Scene(np.asarray(frame, np.uint8), np.array(boxes[each["id"]], np.float32).reshape(-1, 4)))
    return scenes


def write_windows(camera: Camera, scenes: Path, target: Path, most: Mapping[str, int], seed: int = 0) -> None:
    """Cut square windows out of a camera's labelled frames, and write them in folders by class.

    Args:
        camera: the camera.
        scenes: folder that :func:`write_scenes` made.
        target: folder to make; one that exists is kept as it is.
        most: part of the data set -> maximum number of windows of one class.
        seed: seed of the windows' places.
    """
    if target.exists():
        return
    rng = np.random.default_rng(seed)
    with whole_folder(target) as work:
        for part in PARTS:
            frames = read_scenes(scenes / part)
            sides = np.concatenate([(each.boxes[:, 2:] - each.boxes[:, :2]).max(1) for each in frames])
            side = float(np.median(sides)) * camera.side
            found: dict[str, list[tuple[int, Frame]]] = {name: [] for name in camera.classes}
            for number, scene in enumerate(frames):
                for name, window in _windows(camera, scene, side, rng):
                    found[name].append((number, window))
            for name, windows in found.items():
                (work / part / name).mkdir(parents=True)
                chosen = rng.permutation(len(windows))[: most[part]]
                for place in sorted(chosen.tolist()):
                    number, window = windows[place]
                    cv2.imwrite(str(work / part / name / f"{number:04}-{place:05}.jpg"), window, _QUALITY)


def link_feed(windows: Path, part: str = "val") -> Path:
    """Return a folder with links to all windows of one part of a data set, which a feed can read.

    Feeds read the images in a folder, and not those in its folders. Windows of all classes take turns.

    Args:
        windows: folder that :func:`write_windows` made.
        part: part of the data set.
    """
    target = windows / "feed"
    if not target.exists():
        with whole_folder(target) as work:
            for folder in (windows / part).iterdir():
                for number, picture in enumerate(sorted(folder.iterdir())):
                    (work / f"{number:05}-{folder.name}.jpg").hardlink_to(picture)
    return target


def _windows(camera: Camera, scene: Scene, side: float, rng: np.random.Generator) -> Iterator[tuple[str, Frame]]:
    """Yield windows at random places of a frame with their classes; windows that are no clear case are left out.

    Args:
        camera: the camera.
        scene: the labelled frame.
        side: mean side of a window in pixels of the frame.
        rng: source of the places.
    """
    height, width = scene.frame.shape[:2]
    for _ in range(_TRIES):
        size = min(side * rng.uniform(0.8, 1.25), height, width)
        centre = rng.uniform([0, 0], [width, height])
        if len(scene.boxes) and rng.uniform() < _NEAR:
            x1, y1, x2, y2 = scene.boxes[rng.integers(len(scene.boxes))]
            centre = np.array([(x1 + x2) / 2, (y1 + y2) / 2]) + rng.uniform(-0.9, 0.9, 2) * size
        left, top = (int(each) for each in np.clip(centre - size / 2, 0, [width - size, height - size]))
        area = (left, top, left + int(size), top + int(size))
        name = window_class(camera, scene.boxes, area)
        if name is not None:
            window = scene.frame[area[1] : area[3], area[0] : area[2]]
            yield name, np.asarray(cv2.resize(window, (_WINDOW, _WINDOW), interpolation=cv2.INTER_AREA), np.uint8)


def window_class(camera: Camera, boxes: NDArray[np.float32], area: Sequence[int]) -> str | None:
    """Return the class of a window, by how much of each object's box is inside; None for no clear case.

    Args:
        camera: the camera, which says what the classes are.
        boxes: boxes of the objects, ``[K, 4]``.
        area: x1 y1 x2 y2 of the window.
    """
    corner, other = np.maximum(boxes[:, :2], area[:2]), np.minimum(boxes[:, 2:], area[2:])
    inside = (other - corner).clip(0).prod(1) / np.maximum((boxes[:, 2:] - boxes[:, :2]).prod(1), 1e-6)
    none, some, all_ = camera.classes
    if not (inside > 0.05).any():
        return none
    if camera.counts:
        if ((inside > 0.15) & (inside < 0.7)).any() or not (inside >= 0.7).any():
            return None
        return some if int((inside >= 0.7).sum()) == 1 else all_
    if inside.max() >= 0.95:
        return all_
    return some if 0.25 <= inside.max() <= 0.7 else None
