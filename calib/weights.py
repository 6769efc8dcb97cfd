"""What models hold, and what would be there twice if some of them were narrower."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from ..bundles.manifest import Precision
from ..compiler.lowering.lower import Lowered
from ..compiler.writing.sharing import StageParameter, kernels
from .fp16 import fp32_nodes
from .quantize import quantizable_layers
from .record import ModelRecord

__all__ = ["WeightUse"]


class WeightUse:
    """What models hold, as it is before anything is made narrower."""

    def __init__(self, models: Sequence[Lowered]) -> None:
        self.graphs = {model.name: model.stages["main"] for model in models}
        self.uses: dict[str, list[StageParameter]] = kernels(models)
        """Of each tensor of two or more dimensions, by hash, who holds it under which name."""
        self.held: dict[str, dict[str, str]] = {model.name: {} for model in models}
        """The same of each model, stage ``main``: its names, and the hashes."""
        for tensor, uses in self.uses.items():
            for model, stage, name in uses:
                if stage == "main":
                    self.held[model][name] = tensor
        found = {model: quantizable_layers(graph) for model, graph in self.graphs.items()}
        self.layers = {
            model: {layer.name: self.held[model][layer.name] for layer in layers} for model, layers in found.items()
        }
        """Of each model, its layers by name and the kernels that they hold, by hash."""
        self._axes = {(model, "main", layer.name): layer.axis for model, layers in found.items() for layer in layers}

    def in_model(self, model: str, tensors: Collection[str]) -> set[str]:
        """A model's names of tensors."""
        return {name for name, tensor in self.held[model].items() if tensor in tensors}

    def contested(self, records: Mapping[str, ModelRecord]) -> dict[str, str]:
        """Tensors that would be there in several forms, by hash, and why."""

        back = {
            name: fp32_nodes(self.graphs[name], record.peaks)
            for name, record in records.items()
            if record.precision == "fp16"
        }

        def form(use: StageParameter) -> tuple[Precision, int | None]:
            precision = records[use[0]].precision if use[0] in records and use[1] == "main" else "fp32"
            if precision == "int8":
                # Rounded channel by channel, along one axis or the other; what is no layer is not rounded.
                return ("int8", self._axes[use]) if use in self._axes else ("fp32", None)
            if precision == "fp16" and use[2] in back[use[0]]:
                return "fp32", None
            return precision, None

        found = {}
        for kernel, uses in self.uses.items():
            forms = {form(use): use[0] for use in uses}
            if len(forms) > 1:
                found[kernel] = ", ".join(sorted(f"{precision} in {name}" for (precision, _), name in forms.items()))
        return found
