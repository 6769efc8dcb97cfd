"""Make the workloads on which merging is measured, from real images and videos and trained original models.

    .venv/bin/python tools/merge_workloads.py DATA -o out/merge

Needs a folder with ``cifar10-jpeg.tar.xz`` (ImageFolder layout) and the ResNet-20, -32 and -44 of
akamaster/pytorch_resnet_cifar10. Fashion-MNIST comes from Debian's ``dataset-fashion-mnist``. The first call takes
about half an hour on one core; later calls keep the files that exist.

W1 has four queries on CIFAR-10 with nested classes. W2 has two of these queries and one on Fashion-MNIST. Originals are
trained on at most 20,000 images of the training set an epoch, and merging may train on 5,000 images of it per query.
The test set is halved: a merge chooses by one half, and the other confirms.

W3 and W4 have models of the MobileNetV2 family that different people trained (``tools/street_workloads.py``), without
labels. W5 is the paper's setting: one public detector and one public classifier, each fine-tuned to four cameras
(``tools/fine_tunes.py``).
"""

from __future__ import annotations

import argparse
import io
import random
import tarfile
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from fashion_mnist import read_fashion_mnist
from judge_parts import judge_parts
from PIL import Image
from safetensors.torch import save_file
from street_workloads import prepare_family, prepare_street
from torch import Tensor
from torchvision.datasets import ImageFolder
from whole_folder import whole_folder

from gemel.workload.models.factory import read_state
from gemel.workload.zoo.cifar_resnet import CifarResNet, cifar_resnet

__all__ = ["ALL", "main", "prepare"]

_VEHICLES = ("airplane", "automobile", "ship", "truck")
_ANIMALS = ("bird", "cat", "deer", "dog", "frog", "horse")
_CIFAR = tuple(sorted(_VEHICLES + _ANIMALS))
_FASHION = ("ankle-boot", "bag", "coat", "dress", "pullover", "sandal", "shirt", "sneaker", "top", "trouser")
_FASHION_ORDER = ("top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot")
_CHECKPOINTS = {20: "resnet20-12fca82f.th", 32: "resnet32-d509ac18.th", 44: "resnet44-014dd654.th"}
_TRAIN_IMAGES = 5000
_ORIGINAL_IMAGES = 20_000
"""Maximum number of images that an original model is trained on in one epoch."""
_BATCH = 128

Classes = Mapping[str, Sequence[str]]
"""Class of a query -> classes of the data set that belong to the query's class."""

QUERIES: dict[str, tuple[int, Classes]] = {
    "objects": (20, {name: (name,) for name in _CIFAR}),
    "vehicles": (32, {name: (name,) for name in _VEHICLES}),
    "animals": (44, {name: (name,) for name in _ANIMALS}),
    "alive": (32, {"animal": _ANIMALS, "vehicle": _VEHICLES}),
    "clothes": (32, {name: (name,) for name in _FASHION}),
}
"""Query of a CIFAR-10 or Fashion-MNIST workload -> depth of its ResNet, and its classes."""
WORKLOADS = {"w1": ("objects", "vehicles", "animals", "alive"), "w2": ("vehicles", "animals", "clothes")}
ALL = ("w1", "w2", "w3", "w4", "w5")
"""Names of all workloads of the merge benchmark."""


def prepare(data: Path, output: Path, names: Collection[str] = ALL) -> dict[str, Path]:
    """Make the images, the original models and the files of workloads for the merge benchmark.

    Args:
        data: folder with the CIFAR-10 archive, the checkpoints and further videos.
        output: folder for images, weights and workloads.
        names: names of the workloads to make.

    Returns:
        Name of a workload -> workload file.
    """
    made: dict[str, Callable[[], Path]] = {
        "w1": lambda: _labelled("w1", data, output),
        "w2": lambda: _labelled("w2", data, output),
        "w3": lambda: prepare_street(data, output),
        "w4": lambda: prepare_family(data, output),
        "w5": lambda: _cameras(data, output),
    }
    return {name: make() for name, make in made.items() if name in names}


def _cameras(data: Path, output: Path) -> Path:
    # Imported only when needed, because the schema of TensorFlow Lite's files takes a package of its own.
    from fine_tunes import prepare_cameras

    return prepare_cameras(data, output)


def _labelled(workload: str, data: Path, output: Path) -> Path:
    """Make the images and models of the queries of W1 or W2, and return the workload file."""
    for name in WORKLOADS[workload]:
        depth, classes = QUERIES[name]
        source = "fashion" if name == "clothes" else "cifar10"
        if source == "fashion":
            _fashion(output / "images")
        else:
            _cifar(data, output / "images")
        _link(output / "images", output / "data" / name, classes, source)
        judge_parts(output / "data" / name)
        target = output / "weights" / f"{name}.safetensors"
        if not target.exists():
            start = None if name == "clothes" else data / _CHECKPOINTS[depth]
            _fine_tune(name, depth, classes, start, output, target)
    return _workload(workload, output)


def _cifar(data: Path, images: Path) -> None:
    if (images / "cifar10").exists():
        return
    images.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=images) as work, tarfile.open(data / "cifar10-jpeg.tar.xz") as archive:
        archive.extractall(work, filter="data")
        (Path(work) / "cifar10").rename(images / "cifar10")


def _fashion(images: Path) -> None:
    """Write Fashion-MNIST as 32 x 32 RGB PNG files, padded from 28 x 28 gray, in folders by class."""
    if (images / "fashion").exists():
        return
    with tempfile.TemporaryDirectory(dir=images) as work:
        for split, part in (("train", "train"), ("test", "t10k")):
            pixels, labels = read_fashion_mnist(part)
            for name in _FASHION:
                (Path(work) / "fashion" / split / name).mkdir(parents=True)
            for index, (picture, label) in enumerate(zip(pixels, labels, strict=True)):
                image = Image.fromarray(np.pad(picture, 2)).convert("RGB")
                image.save(Path(work) / "fashion" / split / _FASHION_ORDER[label] / f"{index:05}.png")
        (Path(work) / "fashion").rename(images / "fashion")


def _link(images: Path, target: Path, classes: Classes, source: str) -> None:
    """Make folders with links to a query's images, by class: ``train``, ``val`` and ``test``.

    ``train`` has some images of the data set's training set; ``val`` and ``test`` each have half of its test set.
    """
    if target.exists():
        return
    rng = random.Random(0)
    with whole_folder(target) as work:
        total = sum(len(members) for members in classes.values())
        for name, members in classes.items():
            for member in members:
                train = sorted((images / source / "train" / member).iterdir())
                test = sorted((images / source / "test" / member).iterdir())
                rng.shuffle(train)
                rng.shuffle(test)
                half = len(test) // 2
                parts = {"train": train[: _TRAIN_IMAGES // total], "val": test[:half], "test": test[half:]}
                for part, files in parts.items():
                    folder = work / part / name
                    folder.mkdir(parents=True, exist_ok=True)
                    for file in files:
                        (folder / f"{member}-{file.name}").symlink_to(file.resolve())


def _fine_tune(name: str, depth: int, classes: Classes, checkpoint: Path | None, output: Path, target: Path) -> None:
    """Train the original model of a query and write its weights.

    SGD with a one-cycle schedule: one epoch from a public checkpoint (learning rate 0.002), or four epochs from random
    weights (learning rate 0.1) where ``checkpoint`` is None.
    """
    torch.manual_seed(0)
    source = "fashion" if checkpoint is None else "cifar10"
    model = cifar_resnet(depth, len(classes))
    images, labels = _tensors(output / "images" / source / "train", classes)
    if checkpoint is not None:
        state = read_state(checkpoint)
        if len(classes) != len(_CIFAR):
            # The head starts from the rows of the checkpoint's head for the query's classes.
            rows = [[_CIFAR.index(member) for member in members] for members in classes.values()]
            state["linear.weight"] = torch.stack([state["linear.weight"][row].mean(0) for row in rows])
            state["linear.bias"] = torch.stack([state["linear.bias"][row].mean() for row in rows])
        model.load_state_dict(state, strict=False)
    epochs = 4 if checkpoint is None else 1
    _train(model, images, labels, epochs, 0.1 if checkpoint is None else 0.002)
    score = _accuracy(model, *_tensors(output / "images" / source / "test", classes))
    print(f"{name}: ResNet-{depth}, {len(classes)} classes, {score:.1%} of the test set", flush=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, target.with_suffix(".part"))
    target.with_suffix(".part").rename(target)


def _tensors(folder: Path, classes: Classes) -> tuple[Tensor, Tensor]:
    """Load the images of some classes from a data set's folder, ``[N, 3, 32, 32]`` uint8, and their labels ``[N]``."""
    label = {member: index for index, members in enumerate(classes.values()) for member in members}
    data = ImageFolder(str(folder))
    kept = [(path, label[data.classes[index]]) for path, index in data.samples if data.classes[index] in label]
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(Path(path).read_bytes())).convert("RGB")) for path, _ in kept])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), torch.tensor([index for _, index in kept])


def _normalised(model: CifarResNet, pixels: Tensor) -> Tensor:
    spec = model.input_defaults()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
    return ((pixels * spec.scale - mean) / std).contiguous(memory_format=torch.channels_last)


def _train(model: CifarResNet, images: Tensor, labels: Tensor, epochs: int, rate: float) -> None:
    model.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=5e-4, nesterov=True)
    batches = min(len(images), _ORIGINAL_IMAGES) // _BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * batches, pct_start=0.2)
    for epoch in range(epochs):
        order = torch.randperm(len(images))
        for batch in order[: batches * _BATCH].view(-1, _BATCH):
            pixels = images[batch]
            flip = torch.rand(_BATCH) < 0.5
            pixels[flip] = pixels[flip].flip(-1)
            left, top = torch.randint(0, 9, (2,)).tolist()
            pixels = F.pad(pixels, (4, 4, 4, 4))[:, :, top : top + 32, left : left + 32]
            loss = F.cross_entropy(model(_normalised(model, pixels)), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"  epoch {epoch + 1} of {epochs}: loss {float(loss.detach()):.3f}", flush=True)


@torch.no_grad()
def _accuracy(model: CifarResNet, images: Tensor, labels: Tensor) -> float:
    model.eval()
    pairs = zip(images.split(500), labels.split(500), strict=True)
    right = sum(int((model(_normalised(model, part)).argmax(1) == truth).sum()) for part, truth in pairs)
    return right / len(images)


def _workload(name: str, output: Path) -> Path:
    queries = [
        {
            "name": query,
            "feed": "images",
            "task": "classification",
            "labels": list(QUERIES[query][1]),
            "model": {
                "factory": "gemel.workload.zoo.cifar_resnet:cifar_resnet",
                "args": {"depth": QUERIES[query][0], "num_classes": len(QUERIES[query][1])},
                "weights": f"weights/{query}.safetensors",
            },
            "data": {"train": f"data/{query}/train", "val": f"data/{query}/judge"},
        }
        for query in WORKLOADS[name]
    ]
    feeds = {"images": {"source": f"data/{WORKLOADS[name][0]}/val", "fps": 10}}
    path = output / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"schema_version": "1", "feeds": feeds, "queries": queries}, sort_keys=False))
    return path


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with the CIFAR-10 archive, the checkpoints and the videos")
    parser.add_argument("-o", "--output", type=Path, default=Path("out/merge"), help="folder to make workloads in")
    parser.add_argument("--only", nargs="+", choices=ALL, default=ALL, help="workloads to make; default all")
    options = parser.parse_args(arguments)
    for path in prepare(options.data, options.output, options.only).values():
        print(path)


if __name__ == "__main__":
    main()
