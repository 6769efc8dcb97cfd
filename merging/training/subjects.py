"""A model with everything that its retraining needs: training images, a teacher, and held-out images for each query."""

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
"""A model's state dict, on the CPU, with contiguous tensors."""

_EVALUATION_BATCH = 250
"""Images of 64 x 64 pixels in a batch when a model is evaluated; larger images come in smaller batches."""
_MOST_KEPT = 2 << 30
"""Bytes of outputs that a teacher may cache. Detectors with many anchors and classes give megabytes an image."""


def fitting(count: int, images: Images) -> int:
    """Return how many images to use instead of ``count`` images of 64 x 64 pixels.

    The number falls in proportion to the longer side of larger images, which cost more and tell more each. It is 8 at
    least, and ``count`` for smaller images.
    """
    side = max(images.spec.size)
    return max(8, round(count * min(1.0, 64 / side)))


def outputs_of(module: nn.Module, image: Tensor) -> Outputs:
    """Run a stage on a batch ``[B, C, H, W]`` and return its raw outputs as a tuple of float32 tensors."""
    outputs = module(image.contiguous(memory_format=torch.channels_last))
    return tuple(value.float() for value in as_tuple(outputs))


def in_batches(indices: Tensor, size: int) -> tuple[Tensor, ...]:
    """Split indices into batches of at most ``size``, all of nearly equal size.

    A small last batch would have poor BatchNorm statistics.
    """
    return indices.tensor_split(math.ceil(len(indices) / size))


@dataclass(frozen=True)
class JudgedQuery:
    """A query with its held-out images, and the original model's results on them for comparison."""

    query: Query
    task: Task
    images: Images
    teacher: Outputs
    """Raw outputs of the original model on ``images``."""
    original: float
    """Accuracy of the original model on ``images``, above 0."""

    @property
    def goal(self) -> float:
        """Accuracy that the query must reach: its target times the original accuracy."""
        return self.query.target * self.original


class Teacher:
    """The original model as the teacher for distillation.

    Outputs on the training images are cached on the CPU, because training asks for them in every epoch. A cache that
    would exceed 2 GiB is not begun.

    Args:
        module: the stage to copy; gradients of the copy are off.
        images: the training images.
        device: where to run.
    """

    def __init__(self, module: nn.Module, images: Images, device: torch.device) -> None:
        self._module = copy.deepcopy(module).eval().requires_grad_(False)
        self._images, self._device = images, device
        self._keeps = True
        self._known = torch.zeros(2, len(images), dtype=torch.bool)
        self._kept: list[Tensor] = []

    @torch.no_grad()
    def __call__(self, indices: Tensor, mirrored: bool) -> Outputs:
        """Return the outputs for some training images.

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
        """The stage of the original model, in eval mode."""
        return self._module


@dataclass
class Subject:
    """A model in retraining, with its data and its teacher."""

    network: Network
    traced: LayerTrace
    layers: tuple[Layer, ...]
    """Convolutions and linear layers in the order in which they run."""
    train: Images
    """Training images of all queries of the model."""
    held: tuple[JudgedQuery, ...]
    """Queries of the model, each with its held-out images."""
    student: nn.Module
    """The stage ``main``. Its attribute ``model`` is the whole model, whose weights are shared and trained."""
    teacher: Teacher
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    narrow: bool = False
    """Whether the images vary too little to measure BatchNorm statistics on; see :func:`.start.is_narrow`."""

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.network.name

    @property
    def model(self) -> nn.Module:
        """The whole model; its state dict is what the workload's weight file holds."""
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
            limit: held-out images of each query to measure on; all when None.
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
            # The few images may show no object. All of them do: the original's accuracy was measured on them.
            return self._accuracy(held, None)


def accuracies_of(subjects: Iterable[Subject], limit: int | None = None) -> dict[str, float]:
    """Return the accuracy of every query of some models, by query name; 0 where a model computes NaN.

    Args:
        subjects: the models.
        limit: held-out images of each query to measure on; all when None.
    """
    found: dict[str, float] = {}
    for subject in subjects:
        found |= subject.accuracies(limit)
    # NaN weights give NaN accuracies, which JSON cannot hold.
    return {query: 0.0 if math.isnan(value) else value for query, value in found.items()}


@torch.inference_mode()
def outputs_on(module: nn.Module, images: Images, device: torch.device) -> Outputs:
    """Run a stage on a whole data set, in batches, and return its raw outputs ``[N, ...]`` on the CPU."""
    parts = [outputs_of(module, batch.to(device)) for batch in _batches(images)]
    return tuple(torch.cat([part[index].cpu() for part in parts]) for index in range(len(parts[0])))


def _batches(images: Images) -> Iterator[Tensor]:
    """Yield a data set in batches of normalised images, ``[B, C, H, W]``."""
    for indices in torch.arange(len(images)).split(fitting(_EVALUATION_BATCH, images)):
        yield images.batch(indices)


def subject_of(network: Network, workload: Workload, definition: Definition, device: torch.device) -> Subject:
    """Load a model's images, make its teacher and measure the original accuracy of its queries.

    Args:
        network: the model.
        workload: the workload with the model's queries, feeds and data.
        definition: what must be equal for two layers to be able to share.
        device: where the model is retrained.

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
