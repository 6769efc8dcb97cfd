"""Judges of lower precision: accuracies of a model's queries on images that the model was not calibrated on."""

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
from ..merging.tasks import Outputs, Task, task_of
from ..runtime.ort.optimise import DISABLED_OPTIMIZERS
from ..runtime.ort.session import open_session, quiet, usual_threads
from ..workload.data import Images, load_data
from ..workload.document.schema import Query, Workload
from .ranges import CalibrationFrame

__all__ = ["CalibratedQuery", "Judge", "judges_of"]

_FRAMES = (128, 256)
"""Frames of a query without labels: how many to calibrate on, and how many to judge by."""
_LABELLED = 2000
"""Labelled images of a query to load, at most."""
_CALIBRATION = 128
"""Frames of a query to calibrate on, at most."""
_SENSITIVITY = 16
"""Images on which the error of outputs is measured."""
_MOST_KEPT = 1 << 30
"""Bytes of one query's float32 outputs to keep; detectors with many anchors and classes have megabytes an image."""


@dataclass(frozen=True)
class CalibratedQuery:
    """A query, and the images and float32 outputs by which it is judged."""

    query: Query
    """The query, with its accuracy target."""
    task: Task
    """The task, which measures accuracy."""
    images: Images
    """Images to judge by."""
    fp32: Outputs
    """Outputs of the float32 graph on the images."""
    accuracy: float
    """Accuracy of the float32 graph."""

    @property
    def labelled(self) -> bool:
        """Whether the images have labels; without labels, accuracy is agreement with the float32 graph."""
        return self.images.labels is not None or self.images.boxes is not None


@dataclass(frozen=True)
class Judge:
    """Frames to calibrate a model on, and its queries with what they are judged by."""

    outputs: tuple[str, ...]
    """Names of the graph's outputs, in the order in which tasks want them."""
    frames: tuple[CalibrationFrame, ...]
    """Frames to calibrate on."""
    digest: str
    """SHA-256 of the frames and of the images that queries are judged by."""
    queries: tuple[CalibratedQuery, ...] = field(repr=False)
    """Queries of the model; the first one is the one for :meth:`error`."""

    def accuracies(self, graph: ir.Model) -> dict[str, float]:
        """Return query -> accuracy of a graph that is another form of the model, from 0 to 1."""
        run = _Runner(graph, self.outputs)
        return {
            each.query.name: each.task.accuracy(run.all(each.images), each.fp32, each.images) for each in self.queries
        }

    def error(self, graph: ir.Model) -> float:
        """Return how far a graph's outputs are from the float32 graph's, on up to 16 images of the first query.

        The error of an output is its mean squared difference, relative to its variance. The worst output counts.
        """
        run, each = _Runner(graph, self.outputs), self.queries[0]
        few = each.images.select(torch.arange(min(_SENSITIVITY, len(each.images))))
        pairs = zip(run.all(few), each.fp32, strict=True)
        return max(_relative(found, wanted[: len(few)]) for found, wanted in pairs)


def judges_of(workload: Workload, graphs: dict[str, ir.Model], refused: dict[str, str]) -> Iterator[tuple[str, Judge]]:
    """Yield (model, judge) for each model that can be judged, one after the other.

    Args:
        workload: queries, and where their images are.
        graphs: model -> its float32 graph of stage ``main``, for the models to judge.
        refused: receives model -> reason, for models that cannot be judged.

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
    """Load the images of a model's queries, and run the float32 graph on the images to judge by."""
    names = tuple(network.cut.stages["main"].outputs)
    run = _Runner(graph, names)
    frames: dict[str, tuple[CalibrationFrame, ...]] = {}
    queries = []
    for query in network.queries:
        task = task_of(network, query)
        classes = getattr(network.cut.decode, "classes", None)
        train, val = load_data(query, workload, network.cut.input, classes, frames=_FRAMES, labelled=_LABELLED)
        chosen = train.select(_spread(len(train), _CALIBRATION))
        frames.setdefault(_digest(chosen), tuple(_frames(chosen)))
        val = val.select(_spread(len(val), _fitting(run.all(val.select(torch.tensor([0]))))))
        found = run.all(val)
        queries.append(CalibratedQuery(query, task, val, found, task.accuracy(found, found, val)))
    return Judge(
        names,
        tuple(frame for part in frames.values() for frame in part),
        hashlib.sha256("".join([*sorted(frames), *(_digest(each.images) for each in queries)]).encode()).hexdigest(),
        tuple(queries),
    )


def _spread(count: int, most: int) -> Tensor:
    """Return at most ``most`` of ``count`` indices, evenly spread."""
    return torch.linspace(0, count - 1, min(most, count)).long()


def _fitting(outputs: Outputs) -> int:
    """Return how many images' outputs fit in the memory for outputs, given the outputs of one image."""
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
        """Run the graph on images one by one; return each output for all images, ``[N, ...]``."""
        rows = [self._session.run(self._names, {self._port: frame}) for frame in _frames(images)]
        return tuple(torch.cat([_tensor(row[index]) for row in rows]) for index in range(len(self._names)))


def _frames(images: Images) -> Iterator[CalibrationFrame]:
    """Yield each image as the model takes it."""
    for index in range(len(images)):
        yield np.ascontiguousarray(images.batch(torch.tensor([index])).numpy())


def _digest(images: Images) -> str:
    """Return the SHA-256 of images and of how they are preprocessed."""
    return hashlib.sha256(images.spec.model_dump_json().encode() + images.pixels.numpy().tobytes()).hexdigest()


def _tensor(array: CalibrationFrame) -> Tensor:
    """Return an output as a float32 tensor without infinities and not-a-numbers."""
    # A value that overflows in float16 is wrong. Accuracy must still be a number.
    return torch.from_numpy(np.nan_to_num(array.astype(np.float32)))


def _relative(found: Tensor, wanted: Tensor) -> float:
    """Return the mean squared difference, relative to the variance of the wanted values."""
    error, variance = (found - wanted).square().mean(), wanted.var(correction=0)
    return float(error / variance.clamp(min=1e-12))
