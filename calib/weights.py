"""Index of the weights of all models before their conversion to int8 or fp16.

The index finds shared tensors that would not stay one tensor, because models would convert them in different ways:
to another precision, or to int8 with scales along another axis.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from ..bundles.manifest import Precision
from ..compiler.lowering.lower import Lowered
from ..compiler.writing.sharing import StageParameter, kernels
from .fp16 import fp32_nodes
from .layers import quantizable_layers
from .record import ModelRecord

__all__ = ["WeightUse"]


class WeightUse:
    """Float32 graphs of all models before conversion, and the tensors that each model holds."""

    def __init__(self, models: Sequence[Lowered]) -> None:
        self.graphs = {model.name: model.stages["main"] for model in models}
        """Model -> float32 graph of the model's stage ``main``."""
        self.uses: dict[str, list[StageParameter]] = kernels(models)
        """Hash of each tensor of two or more dimensions -> the parameters of models that hold the tensor."""
        self.held: dict[str, dict[str, str]] = {model.name: {} for model in models}
        """Model -> parameter of the model's stage ``main`` -> hash of its tensor, for tensors of two or more
        dimensions."""
        for tensor, uses in self.uses.items():
            for model, stage, name in uses:
                if stage == "main":
                    self.held[model][name] = tensor
        found = {model: quantizable_layers(graph) for model, graph in self.graphs.items()}
        self.layers = {
            model: {layer.name: self.held[model][layer.name] for layer in layers} for model, layers in found.items()
        }
        """Model -> layer that can be quantized -> hash of the layer's kernel."""
        self._axes = {(model, "main", layer.name): layer.axis for model, layers in found.items() for layer in layers}

    def in_model(self, model: str, tensors: Collection[str]) -> set[str]:
        """Return the parameter names under which a model holds the tensors with the given hashes."""
        return {name for name, tensor in self.held[model].items() if tensor in tensors}

    def contested(self, records: Mapping[str, ModelRecord]) -> dict[str, str]:
        """Find shared tensors that models would convert in different ways: another precision, or another scaled axis.

        Args:
            records: model -> its precision and value ranges; other models stay float32.

        Returns:
            Hash of each such tensor -> text that lists the precisions and the models that would convert to them.
        """
        too_large = {
            name: fp32_nodes(self.graphs[name], record.peaks)
            for name, record in records.items()
            if record.precision == "fp16"
        }

        def form(use: StageParameter) -> tuple[Precision, int | None]:
            """Return the precision that a parameter is converted to and, for int8, the axis along which the tensor is
            scaled."""
            model, stage, name = use
            precision = records[model].precision if model in records and stage == "main" else "fp32"
            if precision == "int8":
                # Weights that are no layer's kernel, such as operands behind a Transpose, are not quantized.
                return ("int8", self._axes[use]) if use in self._axes else ("fp32", None)
            if precision == "fp16" and name in too_large[model]:
                return "fp32", None
            return precision, None

        found = {}
        for kernel, uses in self.uses.items():
            forms = {form(use): use[0] for use in uses}
            if len(forms) > 1:
                found[kernel] = ", ".join(sorted(f"{precision} in {name}" for (precision, _), name in forms.items()))
        return found
