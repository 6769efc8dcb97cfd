"""Networks: the models of a workload as PyTorch modules cut into stages, made by a factory or from an ONNX file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import nn

from ...compiler.heads import Cut
from ...compiler.lowering.pytorch import cut_query
from ...errors import RetrainError
from ...workload.document.schema import Query, Workload
from ...workload.models.identity import models_of

__all__ = ["Network", "each_network", "network_of", "networks_of", "users_of"]


@dataclass(frozen=True)
class Network:
    """One model of a workload, which several queries may use."""

    name: str
    """Name of the first query that uses the model."""
    queries: tuple[Query, ...]
    """All queries that use the model."""
    cut: Cut
    """Stages of the model, with its decoder and its input."""

    @property
    def module(self) -> nn.Module:
        """The whole PyTorch model; its state dict holds the weights of the workload's weight file."""
        module = self.cut.stages["main"].module.model
        assert isinstance(module, nn.Module)
        return module


def networks_of(workload: Workload) -> dict[str, Network]:
    """Build every distinct model of a workload with its trained weights, and return the models by name.

    Raises:
        ModelError: a model cannot be built as the workload describes it.
    """
    return {network.name: network for network in each_network(workload)}


def each_network(workload: Workload, refused: Callable[[str, RetrainError], None] | None = None) -> Iterator[Network]:
    """Build and yield the distinct models of a workload one at a time, so that only one has to be in memory.

    Args:
        workload: the workload whose models are built.
        refused: function called with the name and the error of each model that runs but cannot be retrained; the model
            is then skipped. If ``refused`` is None, the error is raised.

    Raises:
        ModelError: a model cannot be built as the workload describes it.
        RetrainError: a model cannot be retrained, and ``refused`` is None.
    """
    for name, queries in users_of(workload).items():
        try:
            network = network_of(name, queries, workload)
        except RetrainError as error:  # noqa: PERF203 - a model is far slower than the handler
            if refused is None:
                raise
            refused(name, error)
        else:
            yield network


def users_of(workload: Workload) -> dict[str, tuple[Query, ...]]:
    """Return model name -> all queries that use the model; a model has the name of the first."""
    model_of = models_of(workload)
    users: dict[str, tuple[Query, ...]] = {}
    for query in workload.queries:
        users[model_of[query.name]] = (*users.get(model_of[query.name], ()), query)
    return users


def network_of(name: str, queries: tuple[Query, ...], workload: Workload) -> Network:
    """Build one model of a workload.

    Args:
        name: name of the model.
        queries: all queries that use the model.
        workload: the workload of the queries.

    Raises:
        ModelError: the model cannot be built as the workload describes it.
        RetrainError: the model cannot be retrained.
    """
    return Network(name, queries, _cut(queries[0], workload))


def _cut(query: Query, workload: Workload) -> Cut:
    """Build a query's model and return it cut into stages."""
    if query.model.onnx is not None:
        from .onnx_models import cut_onnx

        return cut_onnx(query, workload.root)
    return cut_query(query, workload.root)
