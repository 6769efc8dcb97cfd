"""Fixtures for the tests of merging: one thread, and small models with random images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from gemel.bundles.manifest import InputSpec
from gemel.compiler.heads import cut
from gemel.frames.preprocess import Geometry
from gemel.merging.judging.exams import judged_query
from gemel.merging.layers.layers import layers_of
from gemel.merging.models.networks import Network
from gemel.merging.models.trace import trace_layers
from gemel.merging.tasks import task_of
from gemel.merging.training.subjects import Subject, Teacher, outputs_of
from gemel.workload.data import Images, Splits
from gemel.workload.document.schema import Query


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """Use one thread in every test of merging: the models are so small that more threads only wait for each other."""


class Small(nn.Module):
    """A classifier of two convolutions with BatchNorm and a linear head."""

    def __init__(self, classes: int = 3, width: int = 6, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, classes)

    def forward(self, image: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.conv1(image)))
        x = torch.relu(self.norm2(self.conv2(x)))
        scores: Tensor = self.head(self.dropout(x.mean((2, 3))))
        return scores


def make_subject(
    name: str,
    model: Callable[[], nn.Module] | None = None,
    *,
    count: int = 64,
    labels: bool = False,
    targets: tuple[float, ...] = (0.95,),
    task: str = "classification",
    seed: int = 0,
) -> Subject:
    """Make a subject from a model that was never trained, with random images.

    Args:
        name: name of the model and of its first query; further queries append 1, 2, ...
        model: function that builds the model; :class:`Small` if None.
        count: number of images.
        labels: whether the images have labels; these are the model's own answers.
        targets: accuracy target of each query.
        task: task of all queries.
        seed: seed of the images and of the model's weights.
    """
    torch.manual_seed(seed)
    made = cut((model or Small)(), task, InputSpec(size=(8, 8)))
    document = {"feed": "yard", "task": task, "model": {"factory": "a:b"}}
    queries = tuple(
        Query.model_validate({"name": f"{name}{index or ''}", "target": target, **document})
        for index, target in enumerate(targets)
    )
    network = Network(name, queries, made)
    # Each image has a colour of its own: pure noise looks the same to a model that averages over places.
    pixels = (torch.rand(count, 3, 1, 1) * 200 + torch.rand(count, 3, 8, 8) * 55).to(torch.uint8)
    images = Images(pixels, (Geometry((8, 8), (8, 8), (8, 8)),) * count, made.input)
    stage = made.stages["main"].module.eval()
    device = torch.device("cpu")
    if labels:
        with torch.inference_mode():
            images = replace(images, labels=outputs_of(stage, images.batch(torch.arange(count)))[0].argmax(1))
    traced = trace_layers(made)
    splits = Splits(images, images, images)
    held = [judged_query(query_, task_of(network, query_), stage, splits, None, device) for query_ in queries]
    teacher = Teacher(stage)
    return Subject(network, traced, tuple(layers_of(network, traced=traced)), images, tuple(held), stage, teacher)


@pytest.fixture
def subject() -> Callable[..., Subject]:
    """Return :func:`make_subject`, so that a test can make as many subjects as it needs."""
    return make_subject
