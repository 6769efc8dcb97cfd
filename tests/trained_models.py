"""Fixtures with two small trained models, their workload and labelled images. tests/conftest.py loads this plugin."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import query, save, single_thread
from numpy.typing import NDArray
from torch import nn

from gemel.workload.zoo.cifar_resnet import cifar_resnet


@pytest.fixture(scope="session")
def _trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train two small ResNets on images of stripes: one tells their direction, the other their colour.

    Returns:
        The folder with ``workload.yaml``, weights and images; tests must not change it.
    """
    folder = tmp_path_factory.mktemp("trained")
    tasks = {"direction": (("flat", "steep", "upright"), 8), "colour": (("blue", "red"), 14)}
    queries = []
    for name, (classes, depth) in tasks.items():
        pixels, answers = stripes(name, 600)
        for part, chosen in (("train", slice(0, 400)), ("val", slice(400, 600))):
            for index, (image, answer) in enumerate(zip(pixels[chosen], answers[chosen], strict=True)):
                target = folder / "data" / name / part / classes[answer]
                target.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(target / f"{index:03}.png"), np.ascontiguousarray(image[:, :, ::-1]))
        with single_thread():
            save(_train(depth, len(classes), pixels[:400], answers[:400]), folder / f"{name}.safetensors")
        queries.append(
            query(
                name,
                "gemel.workload.zoo.cifar_resnet:cifar_resnet",
                labels=list(classes),
                data={"train": f"data/{name}/train", "val": f"data/{name}/val"},
            )
        )
        queries[-1]["model"] |= {
            "args": {"depth": depth, "num_classes": len(classes)},
            "input": {"size": [16, 16]},
        }
    feeds = {"yard": {"source": "data/colour/val/red"}}
    (folder / "workload.yaml").write_text(json.dumps({"schema_version": "1", "feeds": feeds, "queries": queries}))
    return folder


@pytest.fixture
def trained(_trained: Path, tmp_path: Path) -> Path:
    """Copy the trained models for one test: ``workload.yaml``, weights and labelled images."""
    return Path(shutil.copytree(_trained, tmp_path / "trained"))


def stripes(task: str, count: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Make noisy images of stripes.

    Args:
        task: ``direction`` or ``colour``: what the classes are.
        count: number N of images.

    Returns:
        Images ``[N, 16, 16, 3]`` RGB, and the class of each image ``[N]``.
    """
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:16, :16]
    directions, colours = rng.integers(3, size=count), rng.integers(2, size=count)
    waves = np.stack([(y, x + y, x)[index] for index in directions]) + rng.integers(0, 8, (count, 1, 1))
    images = rng.normal(90, 25, (count, 16, 16, 3)) + 60 * (waves % 6 < 3)[..., None]
    for index, colour in enumerate(colours):
        images[index, :, :, 2 * (1 - colour)] += 50
    return images.clip(0, 255).astype(np.uint8), (directions if task == "direction" else colours)


def _train(depth: int, classes: int, pixels: NDArray[np.uint8], answers: NDArray[np.int64]) -> nn.Module:
    """Train a ResNet for 6 epochs on ``pixels [N, 16, 16, 3]`` and their classes ``answers [N]``."""
    torch.manual_seed(0)
    model = cifar_resnet(depth, classes)
    spec = model.input_defaults()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
    images = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for _ in range(6):
        for batch in torch.randperm(len(images)).split(50):
            loss = nn.functional.cross_entropy(model(images[batch]), torch.from_numpy(answers)[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()
