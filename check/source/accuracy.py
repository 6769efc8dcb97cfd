"""Accuracy of a bundle's queries on this device, compared with the models that the bundle was compiled from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ...bundles.merge_report import MERGE_REPORT, QueryReport, read_report
from ...bundles.reader import Bundle
from ...errors import BundleError, DataError, RetrainError, UnjudgedError
from ...merging.judging.intervals import relative_interval
from ...merging.judging.running import answers_on
from ...merging.models.networks import Network, each_network
from ...merging.tasks import Answers, Task, task_of
from ...runtime.backends import Backend, open_backend
from ...runtime.decode.evidence import accuracy_of
from ...workload.data import MOST_FRAMES, Images, list_data
from ...workload.document.schema import Query, Workload
from ...workload.models.identity import models_of

__all__ = ["QueryAccuracy", "UnjudgedQuery", "verify_accuracy"]

_TOLERANCE = 1e-3
"""Largest difference in accuracy (0 to 1) between a bundle and its source model that counts as rounding."""


@dataclass(frozen=True)
class QueryAccuracy:
    """Accuracies of one query in the bundle and in the source model, from 0 to 1, on the images that confirm a merge.

    A search for a merge never sees these images (:class:`gemel.workload.data.Splits`).
    """

    query: str
    bundle: float
    """Accuracy that a query's model has in the bundle, from 0 to 1."""
    source: float
    """Accuracy that a query has with the PyTorch or ONNX model that the bundle was compiled from, from 0 to 1."""
    reached: float | None
    """Accuracy of a query after the merge, from merge.json. None without merge.json, and without labels, because
    merge.json then holds the agreement with the unmerged model."""
    images: int
    """Number of images on which a query's accuracies in the bundle and in the source model were measured."""
    interval: tuple[float, float]
    """Ends of the bundle's accuracy divided by the source model's, each a one-sided bound at 95 % over images."""
    labelled: bool
    """Whether a query's accuracies are measured against labels; otherwise they are agreement with the source model."""
    merged: QueryReport | None = None
    """Report of merge.json on a query, with the interval of its accuracy divided by the unmerged model's; None without
    a merge.json."""
    part: float | None = None
    """Fraction of the source model's accuracy that a bundle's model in lower precision must keep; None in fp32."""

    @property
    def tolerance(self) -> float:
        """Largest allowed difference between a query's accuracy in the bundle and in the source model.

        Rounding may change an answer that was close to a threshold. So a thousandth is allowed, or one image if there
        are fewer than a thousand.
        """
        return max(_TOLERANCE, 1 / self.images)

    @property
    def passed(self) -> bool:
        """Whether a query's accuracy in the bundle is close enough to that of the source model."""
        if self.part is not None:
            return self.bundle >= self.source * self.part - self.tolerance
        wanted = [self.source] if self.reached is None else [self.source, self.reached]
        # The extra 1e-9: quotients of equal counts may differ in their last digit.
        return all(abs(self.bundle - value) <= self.tolerance + 1e-9 for value in wanted)


@dataclass(frozen=True)
class UnjudgedQuery:
    """Query of a bundle whose accuracy cannot be measured: its model has no measure, or its images show nothing to
    judge by."""

    query: str
    reason: str


def verify_accuracy(
    bundle: Bundle, workload: Workload, parts: Mapping[str, float] | None = None
) -> Iterator[QueryAccuracy | UnjudgedQuery]:
    """Measure the accuracy of every query of a bundle and of its source model.

    Args:
        bundle: bundle that was compiled from ``workload``.
        workload: workload with the source models and the images.
        parts: query name -> fraction of the source model's accuracy that a model in lower precision must keep.

    Raises:
        BundleError: the workload lacks a query of the bundle, or has a model with another input for it.
        DataError: a query has no images.
    """
    queries = bundle.manifest.queries
    if missing := [name for name in queries if name not in {query.name for query in workload.queries}]:
        raise BundleError(f"{workload.path}: has no query {missing[0]!r}, which the bundle has")
    merged = _merged(bundle)
    refused: dict[str, RetrainError] = {}
    with open_backend(bundle) as backend:
        for network in each_network(workload, refused.__setitem__):
            for query in network.queries:
                if query.name in queries:
                    found = _judge(bundle, backend, workload, network, query, merged.get(query.name))
                    part = (parts or {}).get(query.name)
                    yield replace(found, part=part) if isinstance(found, QueryAccuracy) else found
    for name, model in models_of(workload).items():
        if model in refused and name in queries:
            yield UnjudgedQuery(name, str(refused[model]))


def _merged(bundle: Bundle) -> dict[str, QueryReport]:
    """Return query name -> report, from the merge.json of a bundle; empty without a merge.json."""
    if MERGE_REPORT not in bundle.manifest.files:
        return {}
    return dict(read_report(bundle.file(MERGE_REPORT)).queries)


def _judge(
    bundle: Bundle, backend: Backend, workload: Workload, network: Network, query: Query, merged: QueryReport | None
) -> QueryAccuracy | UnjudgedQuery:
    name = bundle.manifest.queries[query.name].model
    model = bundle.manifest.models[name]
    if network.cut.input != model.input:
        raise BundleError(f"query {query.name}: the bundle was compiled for another input: {model.input}")
    try:
        task = task_of(network, query)
        *_, confirm = list_data(query, workload, getattr(network.cut.decode, "classes", None))
        images = confirm.limited(MOST_FRAMES[-1]).read(model.input)
    except (RetrainError, UnjudgedError) as error:
        return UnjudgedQuery(query.name, str(error))
    stage = network.cut.stages["main"]
    source = answers_on(task, stage.module.eval(), images, torch.device("cpu"))
    try:
        own = task.evidence(source, source, images)
    except DataError as error:
        return UnjudgedQuery(query.name, str(error))
    answers = _run(backend, name, model.stages["main"].inputs[0].name, stage.outputs, images, task)
    found = task.evidence(answers, source, images)
    interval = relative_interval(found, own)
    labelled = images.labels is not None or images.boxes is not None
    return QueryAccuracy(
        query.name,
        bundle=accuracy_of(found),
        source=accuracy_of(own),
        reached=merged.reached if labelled and merged is not None else None,
        images=len(images),
        interval=(interval.low, interval.high),
        labelled=labelled,
        merged=merged,
    )


def _run(backend: Backend, model: str, port: str, names: tuple[str, ...], images: Images, task: Task) -> Answers:
    """Run a model of a bundle on one image at a time, as the runtime does, and return its answer to each image."""
    answers: list[Any] = []
    backend.activate(model)
    try:
        for index in range(len(images)):
            image = np.ascontiguousarray(images.batch(torch.tensor([index])).numpy())
            outputs = backend.run(model, "main", {port: image})
            if set(outputs) != set(names):
                raise BundleError(
                    f"model {model}: the bundle's outputs are {', '.join(outputs)}, not {', '.join(names)}"
                )
            row = tuple(torch.from_numpy(np.array(outputs[name])).float() for name in names)
            answers += task.answers(row, [images.geometry[index]])
    finally:
        backend.release(model)
    return answers
