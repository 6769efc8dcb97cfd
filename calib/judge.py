"""Measurement of a converted model's accuracy, per query, on images that the model was not calibrated on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from ..errors import RetrainError
from ..merging.models.networks import Network, each_network
from ..merging.tasks import Answers, Outputs, Task, task_of
from ..runtime.decode.evidence import accuracy_of
from ..runtime.ort.optimise import DISABLED_OPTIMIZERS
from ..runtime.ort.session import open_session, quiet, usual_threads
from ..workload.data import Images, list_data
from ..workload.document.schema import Query, Workload
from .ranges import CalibrationFrame

__all__ = ["CalibratedQuery", "Judge", "judges_of"]

_FRAMES = (128, 256)
"""Number of frames to calibrate a model on, and number of frames to measure its accuracy on, for a query without
labels."""
_LABELLED = 2000
"""Maximum number of labelled images to load for one query."""
_CALIBRATION = 128
"""Maximum number of frames of one query to calibrate on."""
_SENSITIVITY = 16
"""Maximum number of images on which a converted graph's outputs are compared with the float32 graph's outputs."""
_MOST_KEPT = 1 << 30
"""Maximum bytes of one query's float32 outputs to keep in memory.

The outputs of detectors with many anchors and classes take megabytes per image.
"""


@dataclass(frozen=True)
class CalibratedQuery:
    """A query, with the images and float32 outputs that its accuracy in lower precision is measured against."""

    query: Query
    """Query of the workload whose accuracy in lower precision is measured, with its accuracy target."""
    task: Task
    """Task of a query, which computes accuracy from outputs."""
    images: Images
    """Images that a query's accuracy is measured on."""
    fp32: Outputs
    """Outputs of a model's float32 graph on all images that a query's accuracy is measured on."""
    answers: Answers
    """Answers that follow from these outputs, one per image."""
    accuracy: float
    """Accuracy of a query with its model's float32 graph, from 0 to 1."""

    def accuracy_with(self, outputs: Outputs) -> float:
        """Return the accuracy of the query, from 0 to 1, with other outputs on all images."""
        answers = self.task.answers(outputs, self.images.geometry)
        return accuracy_of(self.task.evidence(answers, self.answers, self.images))

    @property
    def labelled(self) -> bool:
        """Whether a query's images have labels; without labels, accuracy is agreement with the float32 graph."""
        return self.images.labels is not None or self.images.boxes is not None


@dataclass(frozen=True)
class Judge:
    """Frames to calibrate one model on, and images and float32 outputs to measure the converted model with."""

    outputs: tuple[str, ...]
    """Names of the outputs of a model's graph, in the order that the tasks of queries expect."""
    frames: tuple[CalibrationFrame, ...]
    """Frames to calibrate a model on."""
    digest: str
    """SHA-256 of a model's calibration frames and of the images that the accuracy of its queries is measured on."""
    queries: tuple[CalibratedQuery, ...] = field(repr=False)
    """Queries of the model that is converted; the error of a converted graph is measured on the images of the first
    one."""

    def accuracies(self, graph: ir.Model) -> dict[str, float]:
        """Return query -> accuracy, from 0 to 1, of a model's graph in float32 or in lower precision."""
        run = _Runner(graph, self.outputs)
        return {each.query.name: each.accuracy_with(run.all(each.images)) for each in self.queries}

    def error(self, graph: ir.Model) -> float:
        """Return the error of a converted graph's outputs against the float32 graph's, on up to 16 images of the first
        query.

        The error of one output is its mean squared difference from the float32 output, divided by the variance of the
        float32 output. The largest error of all outputs is returned.
        """
        run, each = _Runner(graph, self.outputs), self.queries[0]
        few = each.images.select(torch.arange(min(_SENSITIVITY, len(each.images))))
        pairs = zip(run.all(few), each.fp32, strict=True)
        return max(_relative(found, wanted[: len(few)]) for found, wanted in pairs)


def judges_of(workload: Workload, graphs: dict[str, ir.Model], refused: dict[str, str]) -> Iterator[tuple[str, Judge]]:
    """Yield (model name, its :class:`Judge`) for each model whose accuracy can be measured, one model at a time.

    Args:
        workload: queries, and where their images are.
        graphs: model -> its float32 graph of stage ``main``, for the models to yield.
        refused: dict that receives model -> reason, for models whose accuracy cannot be measured.

    Raises:
        DataError: a query has no images.
    """

    def refuse(model: str, error: RetrainError) -> None:
        if model in graphs:
            refused[model] = str(error)

    for network in each_network(workload, refuse):
        if network.name in graphs:
            try:
                yield network.name, _judge(network, workload, graphs[network.name])
            except RetrainError as error:
                refused[network.name] = str(error)


def _judge(network: Network, workload: Workload, graph: ir.Model) -> Judge:
    """Return the :class:`Judge` of one model: load its queries' images, and run the float32 graph on them."""
    names = tuple(network.cut.stages["main"].outputs)
    run = _Runner(graph, names)
    frames: dict[str, tuple[CalibrationFrame, ...]] = {}
    queries = []
    for query in network.queries:
        task = task_of(network, query)
        classes = getattr(network.cut.decode, "classes", None)
        # Images that confirm are for gemel check, and are not read.
        *parts, _ = list_data(query, workload, classes)
        train, val = (
            part.limited(most, _LABELLED).read(network.cut.input) for part, most in zip(parts, _FRAMES, strict=True)
        )
        chosen = train.select(_spread(len(train), _CALIBRATION))
        frames.setdefault(_digest(chosen), tuple(_frames(chosen)))
        val = val.select(_spread(len(val), _fitting(run.all(val.select(torch.tensor([0]))))))
        found = run.all(val)
        answers = task.answers(found, val.geometry)
        reached = accuracy_of(task.evidence(answers, answers, val))
        queries.append(CalibratedQuery(query, task, val, found, answers, reached))
    return Judge(
        names,
        tuple(frame for part in frames.values() for frame in part),
        hashlib.sha256("".join([*sorted(frames), *(_digest(each.images) for each in queries)]).encode()).hexdigest(),
        tuple(queries),
    )


def _spread(count: int, most: int) -> Tensor:
    """Return at most ``most`` indices from 0 to ``count - 1``, evenly spread."""
    return torch.linspace(0, count - 1, min(most, count)).long()


def _fitting(outputs: Outputs) -> int:
    """Return for how many images the outputs of a model fit in 1 GiB, given the outputs of one image; at least 16."""
    return max(_SENSITIVITY, _MOST_KEPT // sum(value.nbytes for value in outputs))


class _Runner:
    """A graph in an ONNX Runtime session on this CPU, optimised as the graphs of bundles are."""

    def __init__(self, graph: ir.Model, names: Sequence[str]) -> None:
        proto = ir.to_proto(graph).SerializeToString()
        self._session = open_session(
            Path(str(graph.graph.name)),
            quiet(usual_threads()),
            proto=proto,
            disabled_optimizers=DISABLED_OPTIMIZERS,
        )
        self._port, self._names = str(graph.graph.inputs[0].name), list(names)

    def all(self, images: Images) -> Outputs:
        """Run a model's graph on N images one by one; return for each output one tensor of all images, ``[N, ...]``."""
        rows = [self._session.run(self._names, {self._port: frame}) for frame in _frames(images)]
        return tuple(torch.cat([_tensor(row[index]) for row in rows]) for index in range(len(self._names)))


def _frames(images: Images) -> Iterator[CalibrationFrame]:
    """Yield each image preprocessed as the model's input, ``[1, C, height, width]`` float32."""
    for index in range(len(images)):
        yield np.ascontiguousarray(images.batch(torch.tensor([index])).numpy())


def _digest(images: Images) -> str:
    """Return the SHA-256 of images and of their preprocessing settings."""
    found = hashlib.sha256(images.spec.model_dump_json().encode())
    for index in range(len(images)):
        found.update(images.at(torch.tensor([index])).numpy().tobytes())
    return found.hexdigest()


def _tensor(array: CalibrationFrame) -> Tensor:
    """Return an output of a model as a float32 tensor; replace not-a-number by 0 and infinities by the largest finite
    numbers."""
    # Outputs that overflow in float16 are wrong, but the accuracy computed from them must still be a number.
    return torch.from_numpy(np.nan_to_num(array.astype(np.float32)))


def _relative(found: Tensor, wanted: Tensor) -> float:
    """Return the mean squared difference of two tensors, divided by the variance of ``wanted``."""
    error, variance = (found - wanted).square().mean(), wanted.var(correction=0)
    return float(error / variance.clamp(min=1e-12))
