"""Subject: a model with all that its retraining needs: training images, a teacher, and held-out images per query."""

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
from ..tasks import Outputs, Task, check_trainable, task_of

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
"""A model's state dict, on the CPU, with contiguous tensors."""

_EVALUATION_BATCH = 250
"""Number of images of 64 x 64 pixels in a batch when a model is evaluated; batches of larger images are smaller."""
_MOST_KEPT = 2 << 30
"""Maximum size in bytes of the outputs that a teacher caches.

The outputs of a detector with many anchors and classes take megabytes an image."""


def fitting(count: int, images: Images) -> int:
    """Return how many images of a data set to use instead of ``count`` images of 64 x 64 pixels.

    If the longer side is above 64 pixels, the number is ``count * 64 / longer side``, because a larger image costs more
    and tells more. Otherwise the number is ``count``. It is never less than 8.
    """
    side = max(images.spec.size)
    return max(8, round(count * min(1.0, 64 / side)))


def outputs_of(module: nn.Module, image: Tensor) -> Outputs:
    """Run a model's stage on a batch ``[B, C, H, W]`` and return the raw outputs as a tuple of float32 tensors."""
    outputs = module(image.contiguous(memory_format=torch.channels_last))
    return tuple(value.float() for value in as_tuple(outputs))


def in_batches(indices: Tensor, size: int) -> tuple[Tensor, ...]:
    """Split indices into batches of at most ``size``, all of nearly equal size.

    A last batch much smaller than the others would have poor BatchNorm statistics.
    """
    return indices.tensor_split(math.ceil(len(indices) / size))


@dataclass(frozen=True)
class JudgedQuery:
    """A query with its held-out images, and the original model's results on these images for comparison."""

    query: Query
    task: Task
    images: Images
    teacher: Outputs
    """Raw outputs of the original model on the query's held-out images."""
    original: float
    """Accuracy of the original model on the query's held-out images, above 0."""

    @property
    def goal(self) -> float:
        """Accuracy that the query must reach: its target times the original accuracy."""
        return self.query.target * self.original


class Teacher:
    """Copy of the original model that serves as the teacher for distillation.

    Outputs on the training images are cached on the CPU, because training asks for them in every epoch. Nothing is
    cached if the cache would exceed 2 GiB.

    Args:
        module: stage of the original model; it is copied, and the copy computes no gradients.
        images: the training images.
        device: device to run on.
    """

    def __init__(self, module: nn.Module, images: Images, device: torch.device) -> None:
        self._module = copy.deepcopy(module).eval().requires_grad_(False)
        self._images, self._device = images, device
        self._keeps = True
        self._known = torch.zeros(2, len(images), dtype=torch.bool)
        self._kept: list[Tensor] = []

    @torch.no_grad()
    def __call__(self, indices: Tensor, mirrored: bool) -> Outputs:
        """Return the teacher's raw outputs for some training images, from the cache if possible.

        Args:
            indices: numbers of the images, ``[B]`` int64.
            mirrored: whether the images are flipped left to right.
        """
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
        """Stage of the original model that is the teacher, in eval mode."""
        return self._module


@dataclass
class Subject:
    """A model in retraining, with its data and its teacher."""

    network: Network
    traced: LayerTrace
    layers: tuple[Layer, ...]
    """Convolutions and linear layers of the model in the order in which they run."""
    train: Images
    """Training images of all queries of the model."""
    held: tuple[JudgedQuery, ...]
    """Queries of the model, each with its held-out images."""
    student: nn.Module
    """Module of the stage ``main``. Its attribute ``model`` is the whole model, which shares weights and is trained."""
    teacher: Teacher
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    narrow: bool = False
    """Whether the training images vary too little to measure BatchNorm statistics on; see :func:`.start.is_narrow`."""
    bases: Mapping[str, Tensor] = field(default_factory=dict)
    """Name of a base -> base, on the CPU, for weights that may be kept as differences."""

    @property
    def name(self) -> str:
        """Name of the model that is retrained."""
        return self.network.name

    @property
    def model(self) -> nn.Module:
        """The whole PyTorch model; its state dict is what the workload's weight file holds."""
        model = self.student.model
        assert isinstance(model, nn.Module)
        return model

    def state(self) -> State:
        """Return a copy of the model's state dict, on the CPU."""
        return {name: value.detach().cpu().clone().contiguous() for name, value in self.model.state_dict().items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Load a state dict into the model, in place."""
        self.model.load_state_dict(dict(state))

    def accuracies(self, limit: int | None = None) -> dict[str, float]:
        """Return the accuracy of each query of the model, by query name.

        Args:
            limit: maximum number of held-out images per query to measure on; None for all.
        """
        self.student.eval()
        return {held.query.name: self._accuracy(held, limit) for held in self.held}

    def _accuracy(self, held: JudgedQuery, limit: int | None) -> float:
        """Return the accuracy of one query on its first ``limit`` held-out images, or on all of them."""
        if limit is None or limit >= len(held.images):
            return held.task.accuracy(outputs_on(self.student, held.images, self.device), held.teacher, held.images)
        few = held.images.select(torch.arange(limit))
        try:
            outputs = outputs_on(self.student, few, self.device)
            return held.task.accuracy(outputs, tuple(value[:limit] for value in held.teacher), few)
        except DataError:
            # The first images may show no object. All images together do: the original accuracy was measured on them.
            return self._accuracy(held, None)


def accuracies_of(subjects: Iterable[Subject], limit: int | None = None) -> dict[str, float]:
    """Return the accuracy of every query of some models, by query name; 0 where a model computes NaN.

    Args:
        subjects: the models.
        limit: maximum number of held-out images per query to measure on; None for all.
    """
    found: dict[str, float] = {}
    for subject in subjects:
        found |= subject.accuracies(limit)
    # NaN weights give NaN accuracies, which JSON cannot hold.
    return {query: 0.0 if math.isnan(value) else value for query, value in found.items()}


@torch.inference_mode()
def outputs_on(module: nn.Module, images: Images, device: torch.device) -> Outputs:
    """Run a model's stage on a whole data set, in batches, and return the raw outputs ``[N, ...]`` on the CPU."""
    parts = [outputs_of(module, batch.to(device)) for batch in _batches(images)]
    return tuple(torch.cat([part[index].cpu() for part in parts]) for index in range(len(parts[0])))


def _batches(images: Images) -> Iterator[Tensor]:
    """Yield the images of a data set, normalised, in batches ``[B, C, H, W]`` for evaluation."""
    for indices in torch.arange(len(images)).split(fitting(_EVALUATION_BATCH, images)):
        yield images.batch(indices)


def subject_of(network: Network, workload: Workload, definition: Definition, device: torch.device) -> Subject:
    """Load a model's images, make its teacher, measure the original accuracy of its queries, and return all together.

    Args:
        network: the model.
        workload: the workload with the model's queries, feeds and data.
        definition: rule that says when two layers may share a weight.
        device: device that the model is retrained on.

    Raises:
        ModelError: the model cannot be retrained.
        DataError: images or labels are missing or do not fit, or the original model's accuracy is 0.
    """
    traced = trace_layers(network.cut)
    stage = network.cut.stages["main"].module.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    classes = getattr(network.cut.decode, "classes", None)
    data, held = {}, []
    for query in network.queries:
        task = task_of(network, query)
        check_trainable(network, query)
        train, val = load_data(query, workload, network.cut.input, classes)
        # Queries of one model with the same data, or with the same feed and no data, train on the images once.
        data[query.data.model_dump_json() if query.data and query.data.train else query.feed] = train
        # Shuffle, so that the first images of an evaluation with a limit are a random sample.
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
