"""``gemel analyze``: the fine-tunes of a workload, and what differences to their base cost per layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...workload.document.schema import Workload
from ..forms.costs import LayerCost, difference_costs
from ..forms.fine_tunes import FineTunes, find_fine_tunes
from ..forms.quantize import BITS
from ..layers.layers import Layer, shareable
from ..models.bases import given_bases
from ..models.networks import Network
from .analysis import Analysis

__all__ = ["DifferenceCosts", "Kernels", "LayerRow", "analyze_differences"]


class Kernels:
    """Shareable kernels of a workload's models, kept while the models are built one after the other."""

    def __init__(self) -> None:
        self.states: dict[str, dict[str, Tensor]] = {}

    def __call__(self, network: Network) -> None:
        """Keep the kernels of a model."""
        state = network.module.state_dict()
        self.states[network.name] = {name: value.detach().cpu() for name, value in state.items() if value.ndim > 1}


@dataclass(frozen=True)
class LayerRow:
    """Costs of the differences that all members of a family have in one layer."""

    layer: str
    """Name of the layer in the first member."""
    shape: tuple[int, ...]
    members: int
    """Number of members that have the layer."""
    bytes: Mapping[int, int]
    """Bits -> bytes of all members' codes and scales, the base not counted."""
    errors: Mapping[int, float]
    """Bits -> norm of all members' errors divided by the norm of their weights; 0 bits stand for the base alone."""
    low_rank: float
    """Error, as in ``errors``, of float32 factors of low rank that take the bytes of 2 bits."""
    base: int
    """Bytes of the base, which all members have in common."""

    @property
    def plain(self) -> int:
        """Bytes of the layer's weights in all members, as they are."""
        return 4 * math.prod(self.shape) * self.members


@dataclass(frozen=True)
class DifferenceCosts:
    """A family of fine-tunes, and what the differences of its members to their base cost."""

    fine_tunes: FineTunes
    rows: tuple[LayerRow, ...]
    """Layers that may be kept as differences, in the order in which they run."""

    def saving(self, bits: int) -> float:
        """Return the fraction of the bytes of these layers that is saved with some bits in all of them."""
        plain = sum(row.plain for row in self.rows)
        return 1 - sum(row.base + row.bytes[bits] for row in self.rows) / plain

    def to_json(self) -> dict[str, Any]:
        """Return the family as an entry of the ``--json`` file of ``gemel analyze``."""
        return {
            "base": self.fine_tunes.name if self.fine_tunes.given else None,
            "distances": dict(self.fine_tunes.distances),
            "saving": {str(bits): self.saving(bits) for bits in (0, *BITS)},
            "layers": [
                {
                    "layer": row.layer,
                    "shape": list(row.shape),
                    "members": row.members,
                    "base_bytes": row.base,
                    "bytes": {str(bits): size for bits, size in row.bytes.items()},
                    "errors": {str(bits): error for bits, error in row.errors.items()},
                    "low_rank": row.low_rank,
                }
                for row in self.rows
            ],
        }


def analyze_differences(workload: Workload, analysis: Analysis, kernels: Kernels) -> list[DifferenceCosts]:
    """Find the fine-tunes among a workload's models and measure their differences, without data.

    Args:
        workload: the workload, which may give bases.
        analysis: analysis of the workload.
        kernels: kernels of the models that were analysed.

    Raises:
        InputError: a base that the workload gives is no ancestor of its models.
        ModelError: the file of a base is missing or cannot be read.
    """
    layers = {model.name: model.layers for model in analysis.models if model.name in kernels.states}
    shapes = {name: {layer.parameter: layer.shape for layer in part} for name, part in layers.items()}
    given = given_bases(workload, shapes)
    found = find_fine_tunes(layers, kernels.states, given)
    return [DifferenceCosts(each, tuple(_rows(each, layers, kernels.states))) for each in found]


def _rows(
    fine_tunes: FineTunes, layers: Mapping[str, Sequence[Layer]], states: Mapping[str, Mapping[str, Tensor]]
) -> list[LayerRow]:
    """Return the costs of the differences of a family, layer by layer."""
    by_base: dict[str, list[tuple[LayerCost, float]]] = {}
    for name in fine_tunes.members:
        for cost in difference_costs(fine_tunes, shareable(layers[name]), states[name], low_rank=True):
            assert cost.base is not None
            square = float(states[name][cost.use.parameter].double().square().sum())
            by_base.setdefault(cost.base, []).append((cost, square))
    return [_row(costs) for costs in by_base.values()]


def _row(costs: Sequence[tuple[LayerCost, float]]) -> LayerRow:
    """Return the costs of one layer from those of its members, each with the squared norm of its weight."""
    first = costs[0][0]
    whole = sum(square for _, square in costs) or 1.0

    def mean(errors: Sequence[float]) -> float:
        """Return the error of all members together."""
        return math.sqrt(sum(error**2 * square for error, (_, square) in zip(errors, costs, strict=True)) / whole)

    return LayerRow(
        first.use.parameter.rpartition(".")[0],
        first.shape,
        len(costs),
        {bits: first.bytes(bits) * len(costs) for bits in (0, *BITS)},
        {bits: mean([cost.errors[bits] for cost, _ in costs]) for bits in (0, *BITS)},
        mean([cost.low_rank or 0.0 for cost, _ in costs]),
        first.base_bytes,
    )
