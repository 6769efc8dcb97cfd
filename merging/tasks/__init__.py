"""Tasks: the losses that a query's model is retrained with, and the accuracy that the model is judged by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from ...bundles.decode_specs import (
    CenterFaceDecode,
    ClassificationDecode,
    EmbeddingDecode,
    FasterRcnnDecode,
    SsdDecode,
    YoloDecode,
)
from ...errors import RetrainError
from ...frames.preprocess import Geometry
from ...runtime.decode.evidence import ImageEvidence, Ratios
from ...workload.data import Images
from ...workload.document.schema import Query
from ..models.networks import Network

__all__ = ["Answers", "Outputs", "Task", "check_trainable", "task_of"]

Outputs = tuple[Tensor, ...]
"""Outputs of the stage ``main`` for a batch, float32, in the order of the stage's output names."""
Answers = Sequence[Any]
"""Answers to images, one per image, in a form that each task chooses: a class, a vector, or decoded detections. Answers
take bytes where raw outputs take megabytes, so outputs are decoded batch by batch and not kept."""


class Task(Protocol):
    """Losses and accuracy for the model of one query."""

    def distance(self, outputs: Outputs, teacher: Outputs) -> Tensor:
        """Return the distillation loss: a scalar to minimise, which is 0 if the outputs equal the teacher's.

        Args:
            outputs: the retrained model's outputs for a batch.
            teacher: the original model's outputs for the same batch.
        """
        ...

    def learns_from(self, images: Images) -> bool:
        """Check whether the task's model can be trained on labels, and a data set has the labels that it needs."""
        ...

    def loss(self, outputs: Outputs, images: Images, indices: Tensor, mirrored: bool) -> Tensor:
        """Return the loss against labels: a scalar to minimise.

        Args:
            outputs: the retrained model's outputs for the images ``indices``.
            images: a data set for which :meth:`learns_from` is true.
            indices: numbers of the images of the batch in the data set, ``[B]`` int64.
            mirrored: whether the images of this batch were mirrored left to right.
        """
        ...

    def answers(self, outputs: Outputs, places: Sequence[Geometry]) -> Answers:
        """Decode the outputs for a batch into one answer per image.

        Args:
            outputs: the model's outputs for the batch, on the CPU.
            places: position of each image of the batch in the model's input.
        """
        ...

    def evidence(self, answers: Answers, teacher: Answers, images: Images) -> ImageEvidence:
        """Return what each image says about a model's answers; its accuracy follows from all images together.

        Args:
            answers: the judged model's answers to ``images``.
            teacher: the original model's answers, which are the truth if the data set has no labels.
            images: the data set; only its labels and boxes are used.

        Raises:
            UnjudgedError: the images cannot tell good models from bad ones: no image has an object, or all images are
                alike.
        """
        ...

    def likeness(self, outputs: Outputs, teacher: Outputs) -> Ratios:
        """Return how far a model's raw outputs agree with the teacher's, per image of a batch, where decoding looks.

        Agreement is a ratio from 0 to 1; 1 means equal outputs. Outputs that decoding ignores count little.

        Args:
            outputs: the judged model's outputs for the batch.
            teacher: the original model's outputs for the same batch.
        """
        ...


def task_of(network: Network, query: Query) -> Task:
    """Return the task of a query, by which its model is judged; most models can be trained by it too.

    Args:
        network: the query's model.
        query: the query.

    Raises:
        RetrainError: answers of the model take more than its stage ``main`` (Faster R-CNN).
    """
    # Imported only when needed: these modules import this one's types, and loading the metrics takes a while.
    decode = network.cut.decode
    if isinstance(decode, FasterRcnnDecode):
        raise RetrainError(f"query {query.name}: Faster R-CNN cannot be retrained yet; one-stage detectors can")
    if isinstance(decode, ClassificationDecode) and _one_of_many(decode):
        from .classification import ClassificationTask

        return ClassificationTask(probabilities=decode.activation == "none")
    if isinstance(decode, EmbeddingDecode):
        from .embedding import EmbeddingTask

        return EmbeddingTask(query.name, decode.normalize)
    if isinstance(decode, SsdDecode | YoloDecode | CenterFaceDecode):
        from .detection import DetectionTask

        return DetectionTask(query, network.cut, decode)
    from .decoded import DecodedTask

    return DecodedTask(query, network.cut)


def check_trainable(network: Network, query: Query) -> None:
    """Check that a model can be trained by the task of a query.

    Raises:
        RetrainError: the outputs have no gradient, or no fixed order.
    """
    from .decoded import refuse_training

    refuse_training(query.name, network.cut)


def _one_of_many(decode: ClassificationDecode) -> bool:
    """Return whether a classifier gives scores of two or more classes that exclude each other."""
    return decode.classes > 1 and not decode.multi_label and not decode.class_numbers and decode.activation != "sigmoid"
