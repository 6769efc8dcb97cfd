"""The models of a workload as merging sees them: a PyTorch module with its stages, whatever it came from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import nn

from ...compiler.heads import Cut
from ...compiler.lowering.lower import cut_query
from ...errors import RetrainError
from ...workload.document.schema import Query, Workload
from ...workload.models.factory import models_of

__all__ = ["Network", "each_network", "networks_of"]


@dataclass(frozen=True)
class Network:
    """One model of a workload: what several queries may use."""

    name: str
    queries: tuple[Query, ...]
    cut: Cut

    @property
    def module(self) -> nn.Module:
        """The whole model; its state dict is what the workload's weight file holds."""
        module = self.cut.stages["main"].module.model
        assert isinstance(module, nn.Module)
        return module


def networks_of(workload: Workload) -> dict[str, Network]:
    """Every distinct model of a workload, by name, with its trained weights.

    Raises:
        ModelError: a model cannot be built from what the workload says.
    """
    return {network.name: network for network in each_network(workload)}


def each_network(workload: Workload, refused: Callable[[str, RetrainError], None] | None = None) -> Iterator[Network]:
    """The same one after the other: what looks at each but once needs the memory of one.

    Args:
        workload: whose models are built.
        refused: told of models that can be run but not retrained, which are then left out.

    Raises:
        ModelError: a model cannot be built from what the workload says.
    """
    model_of = models_of(workload)
    users: dict[str, list[Query]] = {}
    for query in workload.queries:
        users.setdefault(model_of[query.name], []).append(query)
    for name, queries in users.items():
        try:
            cut = _cut(queries[0], workload)
        except RetrainError as error:  # noqa: PERF203 - a model is far slower than the handler
            if refused is None:
                raise
            refused(name, error)
        else:
            yield Network(name, tuple(queries), cut)


def _cut(query: Query, workload: Workload) -> Cut:
    if query.model.onnx is not None:
        from .onnx_models import cut_onnx

        return cut_onnx(query, workload.root)
    return cut_query(query, workload.root)
