"""Make W3 and W4: models of the MobileNetV2 family that different people trained, on videos without labels.

W3 is examples/street: a person detector, a face detector and an embedder on three videos. Each fifth of a video is
divided in time into ``train``, ``val`` and ``test``. Every model trains on the training frames of all three videos, and
of any other video in the folder: a teacher has an answer to any frame, and one video has too few frames (75 of one
face).

W4 has these three models and five more (``tools/objectron_models.py``): a detector of 23 classes of Open Images, and
four models of landmarks that are one architecture trained four times. Landmark models look at crops of an object, so
their feed has random square crops of the frames of all videos, and their answers, the 18 coordinates of nine points,
are compared like embeddings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import make_street_example
import numpy as np
import yaml
from judge_parts import judge_parts
from whole_folder import whole_folder

from gemel.frames.source import Source, resolve
from gemel.workload.data.video import count_frames, pictures

__all__ = ["prepare_family", "prepare_street", "write_crops"]

_STREET = Path(__file__).resolve().parent.parent / "examples" / "street"
_PARTS = {"train": 0.6, "val": 0.8, "test": 1.0}
"""Folder of frames -> end of the folder's share of each fifth of a video, from 0 to 1."""
_MOST_FRAMES = 400
"""Maximum number of frames to take from one video."""
_CROPS = {"train": 600, "val": 150, "test": 150}
"""Folder of crops -> number of crops."""
_CROP = 224
"""Side of a crop in pixels, as the landmark models take it."""
_ROAD = "car-detection"
"""Video of the detector of Open Images, without its suffix."""


def prepare_street(data: Path, output: Path) -> Path:
    """Write the workload W3 and return its path.

    W3 is the street example with frames in folders, and with all training frames in one folder.

    Args:
        data: folder with further videos.
        output: folder for images and the workload.
    """
    _write_frames(data, output)
    path = output / "w3.yaml"
    path.write_text(yaml.safe_dump(_street_document(), sort_keys=False))
    return path


def prepare_family(data: Path, output: Path) -> Path:
    """Write the workload W4 and return its path: eight models of the MobileNetV2 family.

    Args:
        data: folder with further videos, among them ``car-detection.mp4``.
        output: folder for images, converted models and the workload.
    """
    # Imported only when needed, because the schema of TensorFlow Lite's files takes a package of its own.
    from objectron_models import LANDMARKS, OPEN_IMAGES, prepare_objectron

    folders = _write_frames(data, output)
    models = prepare_objectron(output / "objectron")
    write_crops(folders, output / "data" / "street" / "crops")
    judge_parts(output / "data" / "street" / "crops")
    document = _street_document()
    # One query for each model: W3 asks the person detector and the embedder twice.
    document["queries"] = [
        each for each in document["queries"] if each["name"] in ("junction-people", "cabin-faces", "street-appearance")
    ]
    document["feeds"]["road"] = {"source": f"data/street/{_ROAD}/val", "fps": 10}
    document["feeds"]["crops"] = {"source": "data/street/crops/val", "fps": 10}
    document["queries"].append(
        {
            "name": "road-objects",
            "feed": "road",
            "task": "detection",
            "labels": [name.lower() for name in OPEN_IMAGES],
            "model": {
                "factory": "gemel.workload.zoo.ssdlite:ssd_mobilenet_v2",
                "args": {"num_classes": len(OPEN_IMAGES), "batch_norm": False},
                "weights": str((models / "open-images.safetensors").relative_to(output)),
            },
            "data": {"train": "data/street/train", "val": f"data/street/{_ROAD}/judge"},
        }
    )
    for name in LANDMARKS:
        model: dict[str, Any] = {
            "onnx": str((models / f"{name}.onnx").relative_to(output)),
            "outputs": ["landmarks"],
            "input": {"scale": "1/255", "mean": 0.0, "std": 1.0},
        }
        data_of = {"train": "data/street/crops/train", "val": "data/street/crops/judge"}
        document["queries"].append(
            {"name": f"crops-{name}", "feed": "crops", "task": "embedding", "model": model, "data": data_of}
        )
    path = output / "w4.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def _write_frames(data: Path, output: Path) -> list[Path]:
    """Write the frames of all videos, and return a folder for each video with ``train``, ``val`` and ``test``."""
    if not (_STREET / "data" / "junction.avi").exists() or not any((_STREET / "weights").glob("*.safetensors")):
        make_street_example.main([])
    document = yaml.safe_load((_STREET / "workload.yaml").read_text())
    sources = {name: resolve(name, feed["source"], base=_STREET) for name, feed in document["feeds"].items()}
    sources |= {path.stem: resolve(path.stem, str(path)) for path in sorted(data.resolve().glob("*.mp4"))}
    for name, source in sources.items():
        _frames(source, output / "data" / "street" / name)
    folders = [output / "data" / "street" / name for name in sources]
    for folder in folders:
        judge_parts(folder)
    _together([folder / "train" for folder in folders], output / "data" / "street" / "train")
    return folders


def _street_document() -> dict[str, Any]:
    """Return the content of the street example's workload, with frames in folders in place of videos."""
    document: dict[str, Any] = yaml.safe_load((_STREET / "workload.yaml").read_text())
    for name, feed in document["feeds"].items():
        feed["source"] = f"data/street/{name}/val"
    for query in document["queries"]:
        if "weights" in query["model"]:
            query["model"]["weights"] = str(_STREET / query["model"]["weights"])
        query["data"] = {"train": "data/street/train", "val": f"data/street/{query['feed']}/judge"}
    return document


def _frames(source: Source, target: Path) -> None:
    """Write at most ``_MOST_FRAMES`` frames of a video as JPEG, evenly spaced, into ``train``, ``val`` and ``test``."""
    if target.exists():
        return
    what = target.name
    count = count_frames(source, what)
    numbers = list(range(0, count, math.ceil(count / _MOST_FRAMES)))
    with whole_folder(target) as work:
        for part in _PARTS:
            (work / part).mkdir(parents=True)
        for number, picture in zip(numbers, pictures(source, numbers, what), strict=False):
            place = number * 5 / count % 1
            part = next(part for part, end in _PARTS.items() if place < end)
            cv2.imwrite(str(work / part / f"{number:05}.jpg"), picture, [cv2.IMWRITE_JPEG_QUALITY, 95])


def _together(folders: Sequence[Path], target: Path) -> None:
    """Make one folder with hard links to the images of several folders."""
    if target.exists():
        return
    with whole_folder(target) as work:
        for folder in folders:
            for picture in folder.iterdir():
                (work / f"{folder.parent.name}-{picture.name}").hardlink_to(picture)


def write_crops(folders: Sequence[Path], target: Path, seed: int = 0) -> None:
    """Cut random square crops out of the frames of all videos, as many of each, into ``train``, ``val`` and ``test``.

    Args:
        folders: a folder for each video, with frames in ``train``, ``val`` and ``test``.
        target: folder to make; one that exists is kept as it is.
        seed: seed of the crops' places.
    """
    if target.exists():
        return
    rng = np.random.default_rng(seed)
    with whole_folder(target) as work:
        for part, count in _CROPS.items():
            (work / part).mkdir(parents=True)
            frames = [sorted((folder / part).iterdir()) for folder in folders]
            for number in range(count):
                # The videos take turns, so that neighbours in the list are of different cameras.
                paths = frames[number % len(frames)]
                picture = cv2.imread(str(paths[rng.integers(len(paths))]))
                assert picture is not None
                height, width = picture.shape[:2]
                side = int(min(height, width) * rng.uniform(0.35, 0.9))
                left, top = (int(each) for each in rng.uniform([0, 0], [width - side + 1, height - side + 1]))
                crop = cv2.resize(picture[top : top + side, left : left + side], (_CROP, _CROP))
                cv2.imwrite(str(work / part / f"{number:04}.jpg"), crop, [cv2.IMWRITE_JPEG_QUALITY, 95])
