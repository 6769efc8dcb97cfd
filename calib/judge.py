"""What a model loses by being narrower: its queries' accuracies on images that it was not calibrated on."""

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
"""Without labels: to calibrate on, and to judge by."""
_LABELLED = 2000
_CALIBRATION = 128
_SENSITIVITY = 16
_MOST_KEPT = 1 << 30
"""Bytes of a model's outputs on images: detectors with many anchors and classes have megabytes of them an image."""


@dataclass(frozen=True)
class CalibratedQuery:
    """A query, and what it is judged by."""

    query: Query
    task: Task
    images: Images
    fp32: Outputs
    """What the float32 graph gives on ``images``."""
    accuracy: float
    """Its accuracy."""

    @property
    def labelled(self) -> bool:
        """Else accuracy is agreement with the float32 graph."""
        return self.images.labels is not None or self.images.boxes is not None


@dataclass(frozen=True)
class Judge:
    """A model's frames to calibrate on, and its queries."""

    outputs: tuple[str, ...]
    """Names, in the order in which tasks want them."""
    frames: tuple[CalibrationFrame, ...]
    digest: str
    """Of the frames, and of the images that queries are judged by."""
    queries: tuple[CalibratedQuery, ...] = field(repr=False)

    def accuracies(self, graph: ir.Model) -> dict[str, float]:
        """The accuracy of each query, from 0 to 1, by another form of the model."""
        run = _Runner(graph, self.outputs)
        return {
            each.query.name: each.task.accuracy(run.all(each.images), each.fp32, each.images) for each in self.queries
        }

    def error(self, graph: ir.Model) -> float:
        """How far outputs are from the float32 graph's on some images: squared, relative to their variance, and of the
        worst output."""
        run, each = _Runner(graph, self.outputs), self.queries[0]
        few = each.images.select(torch.arange(min(_SENSITIVITY, len(each.images))))
        pairs = zip(run.all(few), each.fp32, strict=True)
        return max(_relative(found, wanted[: len(few)]) for found, wanted in pairs)


def judges_of(workload: Workload, graphs: dict[str, ir.Model], refused: dict[str, str]) -> Iterator[tuple[str, Judge]]:
    """What models are calibrated and judged by, one after the other.

    Args:
        workload: where the images are.
        graphs: the float32 graph, of one stage, of each model that is asked for.
        refused: told why of models that cannot be judged, which are left out.

    Raises:
        DataError: a query without images.
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
    """At most so many of ``count`` indices, evenly spread."""
    return torch.linspace(0, count - 1, min(most, count)).long()


def _fitting(outputs: Outputs) -> int:
    """Of how many images outputs may be kept, if those of one are these."""
    return max(_SENSITIVITY, _MOST_KEPT // sum(value.nbytes for value in outputs))


class _Runner:
    """A graph on this CPU, image by image, as in a bundle."""

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
        rows = [self._session.run(self._names, {self._port: frame}) for frame in _frames(images)]
        return tuple(torch.cat([_tensor(row[index]) for row in rows]) for index in range(len(self._names)))


def _frames(images: Images) -> Iterator[CalibrationFrame]:
    for index in range(len(images)):
        yield np.ascontiguousarray(images.batch(torch.tensor([index])).numpy())


def _digest(images: Images) -> str:
    return hashlib.sha256(images.spec.model_dump_json().encode() + images.pixels.numpy().tobytes()).hexdigest()


def _tensor(array: CalibrationFrame) -> Tensor:
    # What overflows in float16 is wrong, and must not make an accuracy that is no number.
    return torch.from_numpy(np.nan_to_num(array.astype(np.float32)))


def _relative(found: Tensor, wanted: Tensor) -> float:
    error, variance = (found - wanted).square().mean(), wanted.var(correction=0)
    return float(error / variance.clamp(min=1e-12))
