"""What retraining needs to know of a task: how far a model is from its teacher, and how good its answers are."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from ...bundles.manifest import ClassificationDecode, EmbeddingDecode, FasterRcnnDecode
from ...errors import RetrainError
from ...workload.data import Images
from ...workload.document.schema import Query
from ..models.networks import Network

__all__ = ["Outputs", "Task", "task_of"]

Outputs = tuple[Tensor, ...]
"""What the stage ``main`` gives for a batch, in the order of its output names; float32."""


class Task(Protocol):
    """One query's way to be trained and judged."""

    def distance(self, outputs: Outputs, teacher: Outputs) -> Tensor:
        """Distillation: a scalar to minimise, zero where outputs are the teacher's. Both are of one batch."""
        ...

    def learns_from(self, images: Images) -> bool:
        """Whether images have the labels that :meth:`loss` needs, and the model can be trained on them."""
        ...

    def loss(self, outputs: Outputs, images: Images, indices: Tensor, mirrored: bool) -> Tensor:
        """Training on labels: a scalar to minimise, for the images ``indices`` of a data set that it learns from."""
        ...

    def accuracy(self, outputs: Outputs, teacher: Outputs, images: Images) -> float:
        """From 0 to 1, on a whole data set: against its labels where it has some, else agreement with the teacher.

        Raises:
            DataError: images that tell nothing: there is no object in them, or they are all alike.
        """
        ...


def task_of(network: Network, query: Query) -> Task:
    """The task of a query.

    Raises:
        RetrainError: a model whose outputs cannot be compared.
    """
    # Imported by need: they import this module's types, and the metrics take a while.
    decode = network.cut.decode
    if isinstance(decode, FasterRcnnDecode):
        raise RetrainError(f"query {query.name}: Faster R-CNN cannot be retrained yet; one-stage detectors can")
    if isinstance(decode, ClassificationDecode):
        from .classification import ClassificationTask

        return ClassificationTask(probabilities=decode.activation == "none")
    if isinstance(decode, EmbeddingDecode):
        from .embedding import EmbeddingTask

        return EmbeddingTask(query.name, decode.normalize)
    from .detection import DetectionTask

    return DetectionTask(query, network.cut, decode)
