"""``gemel analyze``: where the memory of a workload is, which layers could be shared, and what that would free."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain
from typing import Any

from ...workload.document.schema import Workload
from ..layers.groups import Group, groups_of, pair_bytes, ratio
from ..layers.layers import Definition, Layer, layers_of, shareable
from ..models.networks import Network, each_network

__all__ = ["Analysis", "ModelSizes", "analyze_workload", "heaviest", "sizes_of"]

_STEPS = 100


@dataclass(frozen=True)
class ModelSizes:
    """What the analysis keeps of a model: sizes and layers, no weights."""

    name: str
    queries: tuple[str, ...]
    bytes: int
    """Of all its parameters and buffers, those of BatchNorm and of parts that never run included."""
    layers: tuple[Layer, ...]
    """Convolutions and linear layers in the order in which they run."""

    @property
    def layer_bytes(self) -> int:
        """Of the weights of its layers."""
        return sum(layer.bytes for layer in self.layers)


@dataclass(frozen=True)
class Analysis:
    """Everything here follows from the layers; all sizes are bytes."""

    models: tuple[ModelSizes, ...]
    definition: Definition
    heads: bool
    """Layers that give a model's outputs were counted as if they could be shared."""

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The largest saving first."""
        return groups_of(self.layers, self.heads)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Of all models."""
        return tuple(chain.from_iterable(model.layers for model in self.models))

    @property
    def bytes(self) -> int:
        """Of all models, each once."""
        return sum(model.bytes for model in self.models)

    @property
    def query_bytes(self) -> int:
        """What a session for every query would hold."""
        return sum(model.bytes * len(model.queries) for model in self.models)

    @property
    def potential_bytes(self) -> int:
        """Freed if models shared all they could, each keeping its own layers apart."""
        return sum(group.saving for group in self.groups)

    @property
    def potential_inside_bytes(self) -> int:
        """Freed if layers of one model were shared as well."""
        return sum(group.saving_inside for group in self.groups)

    @property
    def potential(self) -> float:
        """The part of all bytes that sharing between models frees, from 0 to 1."""
        return ratio(self.potential_bytes, self.bytes)

    @property
    def potential_inside(self) -> float:
        """The same with sharing inside models."""
        return ratio(self.potential_inside_bytes, self.bytes)

    @cached_property
    def pairs(self) -> Mapping[tuple[str, str], int]:
        """Two models to the bytes that they could share."""
        return pair_bytes([model.name for model in self.models], self.groups)

    @property
    def sharing_pairs(self) -> int:
        """How many of ``pairs`` have a layer in common."""
        return sum(size > 0 for size in self.pairs.values())

    def heaviest(self, part: float) -> float:
        """:func:`heaviest` of all layers."""
        return heaviest(self.layers, part)

    def to_json(self) -> dict[str, Any]:
        """What ``--json`` writes. ``heavy_hitters`` is the curve of :func:`heaviest` at every percent of the layers."""
        matrix: dict[str, dict[str, int]] = {model.name: {} for model in self.models}
        for (first, second), size in self.pairs.items():
            matrix[first][second] = matrix[second][first] = size
        return {
            "definition": self.definition,
            "heads": self.heads,
            "models": {
                model.name: {
                    "queries": list(model.queries),
                    "bytes": model.bytes,
                    "layers": len(model.layers),
                    "layer_bytes": model.layer_bytes,
                    "shareable_layer_bytes": sum(layer.bytes for layer in shareable(model.layers, self.heads)),
                    "top_15_percent": heaviest(model.layers, 0.15),
                }
                for model in self.models
            },
            "bytes": self.bytes,
            "query_bytes": self.query_bytes,
            "potential_bytes": self.potential_bytes,
            "potential": self.potential,
            "inside": {"potential_bytes": self.potential_inside_bytes, "potential": self.potential_inside},
            "pairs": {"total": len(self.pairs), "sharing": self.sharing_pairs},
            "shareable": matrix,
            "heavy_hitters": [
                {"layers": step / _STEPS, "bytes": self.heaviest(step / _STEPS)} for step in range(_STEPS + 1)
            ],
            "groups": [
                {
                    "definition": group.definition,
                    "appearances": len(group.layers),
                    "bytes": group.bytes,
                    "saving": group.saving,
                    "saving_inside": group.saving_inside,
                    "models": dict(group.counts),
                }
                for group in self.groups
            ],
        }


def analyze_workload(
    workload: Workload,
    definition: Definition = "shape",
    heads: bool = False,
    step: Callable[[ModelSizes], None] = lambda model: None,
) -> Analysis:
    """Look at every model of a workload, one in memory at a time; neither data nor a trained state is needed.

    Args:
        workload: its queries' models are built and run once on noise.
        definition: what must be equal for two layers to be able to share.
        heads: count the layers that give a model's outputs as well.
        step: called with every model that is done.

    Raises:
        ModelError: a model cannot be built from what the workload says.
    """
    models = []
    for network in each_network(workload):
        models.append(sizes_of(network, definition))
        step(models[-1])
    return Analysis(tuple(models), definition, heads)


def sizes_of(network: Network, definition: Definition = "shape") -> ModelSizes:
    """Sizes and layers of one model."""
    module = network.module
    # Both iterators give a tensor once, however many modules use it.
    size = sum(tensor.nbytes for tensor in chain(module.parameters(), module.buffers()))
    queries = tuple(query.name for query in network.queries)
    return ModelSizes(network.name, queries, size, tuple(layers_of(network, definition)))


def heaviest(layers: Iterable[Layer], part: float) -> float:
    """The part of the layers' bytes that the heaviest ``part`` of them holds, both from 0 to 1.

    A layer at the border counts in proportion, so that models with few layers compare with those with many.
    """
    sizes = sorted((layer.bytes for layer in layers), reverse=True)
    whole, rest = divmod(part * len(sizes), 1)
    sums = list(accumulate(sizes, initial=0))
    border = sizes[int(whole)] * rest if int(whole) < len(sizes) else 0
    return ratio(sums[int(whole)] + border, sums[-1])
