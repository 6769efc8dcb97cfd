"""``gemel analyze``: the memory of a workload by model and layer, the layers that could be shared, and the saving."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, chain
from typing import Any

from ...errors import CompileError, GemelError, ModelError
from ...workload.document.schema import Query, Workload
from ..layers.groups import Group, groups_of, pair_bytes, ratio
from ..layers.layers import Definition, Layer, layers_of, shareable
from ..models.networks import Network, network_of, users_of
from .onnx_layer_list import layers_in_file

__all__ = ["Analysis", "ModelSizes", "analyze_workload", "share_of_heaviest", "sizes_of"]

_STEPS = 100
"""Number of steps of the curve ``heavy_hitters`` in the JSON output: one for each percent of the layers."""


@dataclass(frozen=True)
class ModelSizes:
    """Sizes and layers of one model, without its weights."""

    name: str
    queries: tuple[str, ...]
    """Names of the queries that use the model."""
    bytes: int
    """Size in bytes of all parameters and buffers of the model, including BatchNorm and modules that never run."""
    layers: tuple[Layer, ...]
    """Convolutions and linear layers of the model in the order in which they run."""
    kept_as_is: str | None = None
    """Why merging leaves the model as it is; its layers are then those of the ONNX graph. None for a PyTorch module."""

    @property
    def layer_bytes(self) -> int:
        """Size in bytes of the weights of the model's convolutions and linear layers."""
        return sum(layer.bytes for layer in self.layers)


@dataclass(frozen=True)
class Analysis:
    """Sizes of a workload's models and layers, and upper bounds of what sharing could free. All sizes are in bytes."""

    models: tuple[ModelSizes, ...]
    definition: Definition
    """Rule that says when two layers may share a weight."""
    heads: bool
    """Whether layers that give a model's outputs are counted as if they could be shared."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Model name -> why nothing is known of the model, which is left out of all sums."""

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """Groups of layers that could share, largest saving first."""
        return groups_of(self.layers, self.heads)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Convolutions and linear layers of all models, model after model."""
        return tuple(chain.from_iterable(model.layers for model in self.models))

    @property
    def bytes(self) -> int:
        """Size in bytes of all models, each counted once."""
        return sum(model.bytes for model in self.models)

    @property
    def query_bytes(self) -> int:
        """Size in bytes of all models if every query loaded its own copy of its model."""
        return sum(model.bytes * len(model.queries) for model in self.models)

    @property
    def potential_bytes(self) -> int:
        """Bytes freed if models shared all layers that they could with each other, but none inside a model."""
        return sum(group.saving for group in self.groups)

    @property
    def potential_inside_bytes(self) -> int:
        """Bytes freed if all layers that could share did, both between models and inside a model."""
        return sum(group.saving_inside for group in self.groups)

    @property
    def potential(self) -> float:
        """Fraction (0 to 1) of all models' bytes that sharing between models could free."""
        return ratio(self.potential_bytes, self.bytes)

    @property
    def potential_inside(self) -> float:
        """Fraction (0 to 1) of all models' bytes that sharing between and inside models could free."""
        return ratio(self.potential_inside_bytes, self.bytes)

    @cached_property
    def pairs(self) -> Mapping[tuple[str, str], int]:
        """Pair of model names -> bytes that the two models could share if there were no other models."""
        return pair_bytes([model.name for model in self.models], self.groups)

    @property
    def sharing_pairs(self) -> int:
        """Number of pairs of models that could share at least one layer."""
        return sum(size > 0 for size in self.pairs.values())

    def heaviest(self, part: float) -> float:
        """Return the fraction of all layers' bytes that is in the heaviest fraction ``part`` of the layers."""
        return share_of_heaviest(self.layers, part)

    def to_json(self) -> dict[str, Any]:
        """Return the analysis as the content of the ``--json`` file of ``gemel analyze``.

        ``heavy_hitters`` is the curve of :func:`share_of_heaviest` at every percent of the layers.
        """
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
                    "top_15_percent": share_of_heaviest(model.layers, 0.15),
                    **({"kept_as_is": model.kept_as_is} if model.kept_as_is is not None else {}),
                }
                for model in self.models
            },
            "left_out": dict(self.left_out),
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
    built: Callable[[Network], None] = lambda network: None,
) -> Analysis:
    """Measure every model of a workload, with one model in memory at a time. No data or trained weights are needed.

    A model from an ONNX file that cannot be converted to PyTorch is measured in the file's own graph. A model that
    cannot be measured at all is left out.

    Args:
        workload: the workload; each of its models is built and run once on noise.
        definition: what must be equal for two layers to be able to share.
        heads: whether to count layers that give a model's outputs as well.
        step: called after each model that was measured.
        built: called with each PyTorch model that was built.

    Raises:
        ModelError: no model of the workload can be measured.
    """
    models: list[ModelSizes] = []
    left_out: dict[str, GemelError] = {}
    for name, queries in users_of(workload).items():
        try:
            models.append(_measure(name, queries, workload, definition, built))
        except (CompileError, ModelError) as error:  # noqa: PERF203 - one model must not stop the others
            left_out[name] = error
        else:
            step(models[-1])
    if not models:
        raise next(iter(left_out.values()))
    return Analysis(tuple(models), definition, heads, {name: str(error) for name, error in left_out.items()})


def _measure(
    name: str,
    queries: tuple[Query, ...],
    workload: Workload,
    definition: Definition,
    built: Callable[[Network], None],
) -> ModelSizes:
    """Measure the bytes of one model and of its layers, as a PyTorch module or else in the graph of its ONNX file.

    Raises:
        ModelError: the model cannot be built or opened.
    """
    try:
        built(network := network_of(name, queries, workload))
        return sizes_of(network, definition)
    except ModelError as error:
        if queries[0].model.onnx is None:
            raise
        try:
            size, layers = layers_in_file(name, queries[0], workload.root, definition)
        except ModelError:
            raise error from None
        return ModelSizes(name, tuple(query.name for query in queries), size, layers, str(error))


def sizes_of(network: Network, definition: Definition = "shape") -> ModelSizes:
    """Return the size in bytes of one model, and its layers with their sizes."""
    module = network.module
    # Both iterators yield a tensor once, even if several modules use it.
    size = sum(tensor.nbytes for tensor in chain(module.parameters(), module.buffers()))
    queries = tuple(query.name for query in network.queries)
    return ModelSizes(network.name, queries, size, tuple(layers_of(network, definition)))


def share_of_heaviest(layers: Iterable[Layer], part: float) -> float:
    """Return the fraction (0 to 1) of the layers' bytes that is in the heaviest fraction ``part`` of the layers.

    If the fraction ends inside a layer, this layer counts in proportion. So models with few layers can be compared with
    models with many layers.
    """
    sizes = sorted((layer.bytes for layer in layers), reverse=True)
    whole, rest = divmod(part * len(sizes), 1)
    sums = list(accumulate(sizes, initial=0))
    border = sizes[int(whole)] * rest if int(whole) < len(sizes) else 0
    return ratio(sums[int(whole)] + border, sums[-1])
