"""A model together with what its retraining needs: its images, its teacher, and how its queries are judged."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ...compiler.heads import as_tuple
from ...errors import DataError
from ...workload.data import Images, joined, load_data
from ...workload.document.schema import Query, Workload
from ..layers.layers import Definition, Layer, layers_of
from ..models.networks import Network
from ..models.trace import LayerTrace, trace_layers
from ..tasks import Outputs, Task, task_of

__all__ = [
    "JudgedQuery",
    "State",
    "Subject",
    "Teacher",
    "accuracies_of",
    "fitting",
    "in_batches",
    "outputs_of",
    "outputs_on",
    "subject_of",
]

State = dict[str, Tensor]
"""A model's state dict, on the CPU, in plain memory order."""

_EVALUATION_BATCH = 250
_MOST_KEPT = 2 << 30
"""Bytes of a teacher's outputs: detectors with many anchors and classes have megabytes of them an image."""


def fitting(count: int, images: Images) -> int:
    """So many images of 64 x 64 pixels or less, and fewer of larger ones, which cost and tell more each; at least 8."""
    side = max(images.spec.size)
    return max(8, round(count * min(1.0, 64 / side)))


def outputs_of(module: nn.Module, image: Tensor) -> Outputs:
    """The raw outputs of a stage as a tuple of float32 tensors."""
    outputs = module(image.contiguous(memory_format=torch.channels_last))
    return tuple(value.float() for value in as_tuple(outputs))


def in_batches(indices: Tensor, size: int) -> tuple[Tensor, ...]:
    """At most ``size`` indices each, of nearly one number: a last batch of few images has poor BatchNorm statistics."""
    return indices.tensor_split(math.ceil(len(indices) / size))


@dataclass(frozen=True)
class JudgedQuery:
    """What a query is judged by."""

    query: Query
    task: Task
    images: Images
    teacher: Outputs
    """The original model's outputs on ``images``."""
    original: float
    """The original model's accuracy."""

    @property
    def goal(self) -> float:
        """The accuracy that the query must keep."""
        return self.query.target * self.original


class Teacher:
    """The original model. Its outputs on a data set are kept, as training asks for them again and again."""

    def __init__(self, module: nn.Module, images: Images, device: torch.device) -> None:
        self._module = copy.deepcopy(module).eval().requires_grad_(False)
        self._images, self._device = images, device
        self._keeps = True
        self._known = torch.zeros(2, len(images), dtype=torch.bool)
        self._kept: list[Tensor] = []

    @torch.no_grad()
    def __call__(self, indices: Tensor, mirrored: bool) -> Outputs:
        """Outputs for the images ``indices``, each mirrored or not."""
        if not self._keeps:
            return outputs_of(self._module, self._images.batch(indices, mirrored).to(self._device))
        side = int(mirrored)
        missing = indices[~self._known[side, indices]].unique()
        if len(missing):
            outputs = outputs_of(self._module, self._images.batch(missing, mirrored).to(self._device))
            if not self._kept:
                size = sum(value[0].nbytes for value in outputs)
                if 2 * len(self._images) * size > _MOST_KEPT:
                    self._keeps = False
                    return self(indices, mirrored)
                self._kept = [torch.empty(2, len(self._images), *value.shape[1:]) for value in outputs]
            for kept, value in zip(self._kept, outputs, strict=True):
                kept[side, missing] = value.cpu()
            self._known[side, missing] = True
        return tuple(kept[side, indices].to(self._device) for kept in self._kept)

    @property
    def module(self) -> nn.Module:
        return self._module


@dataclass
class Subject:
    """A model in retraining."""

    network: Network
    traced: LayerTrace
    layers: tuple[Layer, ...]
    train: Images
    held: tuple[JudgedQuery, ...]
    student: nn.Module
    """The stage ``main``; its attribute ``model`` is the whole model, whose weights are shared and trained."""
    teacher: Teacher
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    narrow: bool = False
    """Whether the images are too much alike to measure BatchNorm statistics on; see :func:`.start.is_narrow`."""

    @property
    def name(self) -> str:
        return self.network.name

    @property
    def model(self) -> nn.Module:
        """The module whose state dict the workload's weights are."""
        model = self.student.model
        assert isinstance(model, nn.Module)
        return model

    def state(self) -> State:
        return {name: value.detach().cpu().clone().contiguous() for name, value in self.model.state_dict().items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.model.load_state_dict(dict(state))

    def accuracies(self, limit: int | None = None) -> dict[str, float]:
        """Accuracy of each query, on the first ``limit`` of its held images or all."""
        self.student.eval()
        return {held.query.name: self._accuracy(held, limit) for held in self.held}

    def _accuracy(self, held: JudgedQuery, limit: int | None) -> float:
        if limit is None or limit >= len(held.images):
            return held.task.accuracy(outputs_on(self.student, held.images, self.device), held.teacher, held.images)
        few = held.images.select(torch.arange(limit))
        try:
            outputs = outputs_on(self.student, few, self.device)
            return held.task.accuracy(outputs, tuple(value[:limit] for value in held.teacher), few)
        except DataError:
            # There may be no object in these few; in all of them there is, as the original was judged by them.
            return self._accuracy(held, None)


def accuracies_of(subjects: Iterable[Subject], limit: int | None = None) -> dict[str, float]:
    """Of every query of the subjects, on the first ``limit`` of its held images or all."""
    found: dict[str, float] = {}
    for subject in subjects:
        found |= subject.accuracies(limit)
    # Weights that are no numbers make accuracies that are none, and JSON has no place for these.
    return {query: 0.0 if math.isnan(value) else value for query, value in found.items()}


@torch.inference_mode()
def outputs_on(module: nn.Module, images: Images, device: torch.device) -> Outputs:
    """Raw outputs on a whole data set, on the CPU."""
    parts = [outputs_of(module, batch.to(device)) for batch in _batches(images)]
    return tuple(torch.cat([part[index].cpu() for part in parts]) for index in range(len(parts[0])))


def _batches(images: Images) -> Iterator[Tensor]:
    for indices in torch.arange(len(images)).split(fitting(_EVALUATION_BATCH, images)):
        yield images.batch(indices)


def subject_of(network: Network, workload: Workload, definition: Definition, device: torch.device) -> Subject:
    """Load a model's images and see how well its queries do before anything is merged.

    Raises:
        ModelError: a model that cannot be retrained.
        DataError: images or labels are missing or do not fit.
    """
    traced = trace_layers(network.cut)
    stage = network.cut.stages["main"].module.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    classes = getattr(network.cut.decode, "classes", None)
    data, held = {}, []
    for query in network.queries:
        task = task_of(network, query)
        train, val = load_data(query, workload, network.cut.input, classes)
        # Queries of one model that name the same data, or watch the same feed without any, train on it once.
        data[query.data.model_dump_json() if query.data and query.data.train else query.feed] = train
        # A look at some of the images is a look at any of them.
        images = val.select(torch.randperm(len(val), generator=torch.Generator().manual_seed(0)))
        outputs = outputs_on(stage, images, device)
        held.append(JudgedQuery(query, task, images, outputs, task.accuracy(outputs, outputs, images)))
    for each in held:
        if each.original <= 0:
            raise DataError(f"query {each.query.name}: the model finds nothing right on its data: accuracy 0")
    together = joined(list(data.values()))
    teacher = Teacher(stage, together, device)
    layers = tuple(layers_of(network, definition, traced))
    return Subject(network, traced, layers, together, tuple(held), stage, teacher, device)
