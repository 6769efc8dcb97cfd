"""The cameras, models and workload of the drill: clothes on two belts, and three models for day and night.

    .venv/bin/python tools/loop_models.py       # trains the models again

The images are Fashion-MNIST (Xiao, Rasul, Vollgraf 2017; MIT licence), from the Debian package dataset-fashion-mnist.
A camera is a video in which every frame shows another one, 28 x 28 pixels enlarged to 112 x 112. The models are ResNets
of the CIFAR family, trained on bright, dark, noisy and moved frames, because the owner of a camera knows what may come;
their weights are in examples/loop. The recordings that models are merged by are of one day.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np
import torch
import torch.nn.functional as F
from drift_scenes import DISTURBANCES
from fashion_mnist import read_fashion_mnist
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from whole_folder import whole_folder

from gemel.bundles.manifest import InputSpec
from gemel.frames.frame import Image
from gemel.frames.preprocess import preprocess
from gemel.workload.zoo.cifar_resnet import cifar_resnet

__all__ = ["CAMERAS", "FPS", "LENGTH", "QUERIES", "DrillQuery", "make_loop_models"]

FPS = 20
"""Frames per second of a camera."""
LENGTH = 2400
"""Frames of a camera's video, which is played again and again."""
CAMERAS = ("north", "south")
_SIDE, _SIZE = 112, 20
"""Side of a frame, and of a model's input, in pixels."""
_TRAIN, _DAY, _LIVE = 35_000, 35_000, 45_000
"""Number of images that models are trained on, which come first, and the first of the recordings and of the videos."""
_APART = 5_000
"""Images between those of the two cameras."""
_EPOCHS, _BATCH, _RATE = 4, 128, 0.2
_BRIGHT, _DARK = 0.7, 6.0
"""Least and greatest gamma of frames that models are trained on."""
_NOISE, _CROP = 0.1, 0.8
"""Greatest standard deviation of noise, as a part of white, and smallest part of a frame that is seen in training."""
_WEIGHTS = Path(__file__).resolve().parent.parent / "examples" / "loop"


@dataclass(frozen=True)
class DrillQuery:
    """Query of the drill, and the model that is trained for it."""

    feed: str
    depth: int
    """Layers of its ResNet."""
    labels: tuple[str, ...]
    kinds: Mapping[int, int]
    """Class in Fashion-MNIST -> number of the label; all other classes have label 0."""


QUERIES = {
    "north-shoes": DrillQuery("north", 14, ("other", "sandal", "sneaker", "boot"), {5: 1, 7: 2, 9: 3}),
    "south-items": DrillQuery(
        "south", 14, ("top", "trouser", "dress", "bag", "shoe"), {1: 1, 3: 2, 8: 3, 5: 4, 7: 4, 9: 4}
    ),
    "south-bags": DrillQuery("south", 8, ("other", "bag"), {8: 1}),
}


def _frame_of(image: NDArray[np.uint8]) -> Image:
    """Return a camera's frame of one image ``[28, 28]``: ``[112, 112, 3]`` BGR."""
    large = cv2.resize(image, (_SIDE, _SIDE), interpolation=cv2.INTER_CUBIC)
    return np.asarray(cv2.cvtColor(large, cv2.COLOR_GRAY2BGR), np.uint8)


def make_loop_models(folder: Path, night: str, *, recorded: int, target: float) -> Path:
    """Fetch the images, and write recordings, videos and a workload; return the workload file.

    A folder that is there already is used as it is.

    ::

        folder/
          workload.yaml, north-shoes.safetensors, ...
          day-north/*.jpg               recording that models are merged by
          north-day.mp4, north-night.mp4, ...
          labels.json                   query -> the right label of each frame of its camera's video

    Args:
        folder: folder to write.
        night: name of the disturbance in :data:`drift_scenes.DISTURBANCES` that makes a video the other scene.
        recorded: frames of each recording.
        target: accuracy target of all queries, relative to the original models.
    """
    if folder.exists():
        return folder / "workload.yaml"
    with whole_folder(folder) as work:
        images, classes = read_fashion_mnist("train")
        for number, camera in enumerate(CAMERAS):
            first = _DAY + number * _APART
            (work / f"day-{camera}").mkdir()
            for index, image in enumerate(images[first : first + recorded]):
                cv2.imwrite(str(work / f"day-{camera}" / f"{index:05}.jpg"), _frame_of(image))
            live = images[_LIVE + number * _APART :][:LENGTH]
            for scene, name in (("day", "none"), ("night", night)):
                _write_video(work / f"{camera}-{scene}.mp4", _disturbed(live, name, number))
        labels = {}
        for name, query in QUERIES.items():
            shutil.copyfile(_WEIGHTS / f"{name}.safetensors", work / f"{name}.safetensors")
            first = _LIVE + CAMERAS.index(query.feed) * _APART
            labels[name] = [query.labels[each] for each in _numbers(query, classes[first : first + LENGTH])]
        (work / "labels.json").write_text(json.dumps(labels))
        feeds = {camera: {"source": f"day-{camera}", "fps": FPS, "loop": True} for camera in CAMERAS}
        queries = [_query(name, query, target) for name, query in QUERIES.items()]
        document = {"schema_version": "1", "feeds": feeds, "queries": queries}
        (work / "workload.yaml").write_text(json.dumps(document, indent=1) + "\n")
    return folder / "workload.yaml"


def _query(name: str, query: DrillQuery, target: float) -> dict[str, object]:
    model = {
        "factory": "gemel.workload.zoo.cifar_resnet:cifar_resnet",
        "args": {"depth": query.depth, "num_classes": len(query.labels)},
        "weights": f"{name}.safetensors",
        "input": {"size": [_SIZE, _SIZE]},
    }
    labels = list(query.labels)
    return {"name": name, "feed": query.feed, "task": "classification", "labels": labels, "model": model,
            "target": target}  # fmt: skip


def _numbers(query: DrillQuery, classes: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the number of a query's label for each class of Fashion-MNIST."""
    table = np.array([query.kinds.get(each, 0) for each in range(10)], np.int64)
    return np.asarray(table[classes])


def _disturbed(images: NDArray[np.uint8], name: str, seed: int) -> Iterator[Image]:
    """Yield frames of images as a camera would give them in a scene of :data:`drift_scenes.DISTURBANCES`."""
    random, disturb = np.random.default_rng(seed), DISTURBANCES[name]
    for image in images:
        yield np.ascontiguousarray(disturb(_frame_of(image), random))


def _write_video(path: Path, frames: Iterator[Image]) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "16", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = _SIDE, _SIDE, "yuv420p", FPS
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
        container.mux(stream.encode())


def _train(query: DrillQuery, images: NDArray[np.uint8], classes: NDArray[np.uint8]) -> nn.Module:
    """Train a query's model on frames as bright as day and as dark as night, noisy, and moved; return it."""
    # Layers are so small that a second thread mostly waits.
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = cifar_resnet(query.depth, len(query.labels))
    pixels, truth = _pixels(_frame_of(each) for each in images), torch.from_numpy(_numbers(query, classes))
    optimizer = torch.optim.SGD(model.parameters(), _RATE, momentum=0.9, weight_decay=1e-4, nesterov=True)
    steps = len(images) // _BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=_EPOCHS * steps)
    for _ in range(_EPOCHS):
        for rows in torch.randperm(len(images))[: steps * _BATCH].split(_BATCH):
            loss = F.cross_entropy(model(_normalised(_augmented(pixels[rows]))), truth[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def _pixels(frames: Iterable[Image]) -> Tensor:
    """Return the pixels of frames as a model sees them, gray from 0 to 1: ``[N, 20, 20]``."""
    spec = InputSpec(size=(_SIZE, _SIZE))
    return torch.from_numpy(np.concatenate([preprocess(each, spec)[0][:, 0] for each in frames]))


def _augmented(pixels: Tensor) -> Tensor:
    """Return pictures ``[N, 20, 20]`` with parts cut out of most of them, darker, and with noise."""
    count = len(pixels)
    part = torch.empty(count).uniform_(_CROP, 1)
    part[torch.rand(count) < 0.4] = 1
    place = torch.zeros(count, 2, 3)
    place[:, 0, 0] = place[:, 1, 1] = part
    place[:, :, 2] = (1 - part)[:, None] * torch.empty(count, 2).uniform_(-1, 1)
    grid = F.affine_grid(place, [count, 1, _SIZE, _SIZE], align_corners=False)
    cut = F.grid_sample(pixels[:, None], grid, align_corners=False)[:, 0].clamp(1e-4, 1)
    dark = cut ** torch.exp(torch.empty(count, 1, 1).uniform_(math.log(_BRIGHT), math.log(_DARK)))
    return (dark + torch.randn_like(dark) * torch.empty(count, 1, 1).uniform_(0, _NOISE)).clamp(0, 1)


def _normalised(pixels: Tensor) -> Tensor:
    """Return the input of a model: ``[N, 3, 20, 20]`` with the statistics that it expects."""
    usual = cifar_resnet(8).input_defaults()
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (usual.mean, usual.std))
    return (pixels[:, None].expand(-1, 3, -1, -1) - mean) / std


@torch.no_grad()
def _accuracy(query: DrillQuery, model: nn.Module, frames: Iterable[Image], classes: NDArray[np.uint8]) -> float:
    right = model(_normalised(_pixels(frames))).argmax(1) == torch.from_numpy(_numbers(query, classes))
    return float(right.float().mean())


def main() -> None:
    """Train the models of the drill, write their weights, and print how good they are by day and at night."""
    _WEIGHTS.mkdir(exist_ok=True)
    images, classes = read_fashion_mnist("train")
    test = slice(_LIVE, _LIVE + 2000)
    for name, query in QUERIES.items():
        model = _train(query, images[:_TRAIN], classes[:_TRAIN])
        path = _WEIGHTS / f"{name}.safetensors"
        save_file(dict(model.state_dict()), path)
        found = {
            scene: _accuracy(query, model, _disturbed(images[test], scene, 0), classes[test])
            for scene in ("none", "night, gamma 3", "night, gamma 5")
        }
        words = "; ".join(f"{scene}: {value:.3f}" for scene, value in found.items())
        print(f"{path}  {path.stat().st_size / 1e6:.1f} MB  right answers: {words}", flush=True)


if __name__ == "__main__":
    main()
