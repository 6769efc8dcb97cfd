"""What one run of a model tells of its layers: their order, the BatchNorm behind each, and which give the outputs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...compiler.heads import Cut, as_tuple

__all__ = ["LAYERS", "NORMS", "LayerTrace", "hooked", "trace_layers"]

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

Hook = Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]


@dataclass(frozen=True)
class LayerTrace:
    """Names are those of ``named_modules`` of the model."""

    order: tuple[str, ...]
    """Convolutions and linear layers in the order in which they ran, each once."""
    norm_of: dict[str, str]
    """Layer to the BatchNorm that takes its output, and nothing else's."""
    heads: frozenset[str]
    """Layers from which an output of the model comes without another layer or BatchNorm between."""


def trace_layers(cut: Cut) -> LayerTrace:
    """Run every stage of a model on its example inputs.

    Layers that do not run (auxiliary classifiers) are not in the trace.
    """
    module = cut.stages["main"].module.model
    assert isinstance(module, nn.Module)
    names: dict[nn.Module, str] = {
        layer: name for name, layer in module.named_modules() if isinstance(layer, LAYERS + NORMS)
    }
    order: dict[str, None] = {}
    norm_of: dict[str, str] = {}
    sources: dict[Any, nn.Module] = {}

    def ran(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        # What made a tensor is asked of the autograd graph: an activation in place leaves the tensor itself the same.
        before = sources.get(inputs[0].grad_fn)
        sources[output.grad_fn] = layer
        if isinstance(layer, LAYERS):
            order[names[layer]] = None
        elif isinstance(before, LAYERS):
            norm_of[names[before]] = names[layer]

    heads: set[str] = set()
    passed_on = {name for stage in cut.stages.values() for name in stage.inputs}
    with hooked(names, ran), torch.enable_grad():
        for stage in cut.stages.values():
            # One of a batch is enough. Without a gradient to some input, a model of frozen weights would have no graph.
            inputs = [
                (value[:1] if 0 in stage.free.get(name, ()) else value).detach().clone().requires_grad_()
                for name, value in stage.inputs.items()
            ]
            outputs = as_tuple(stage.module(*inputs))
            for name, output in zip(stage.outputs, outputs, strict=True):
                # features_0, features_1, ... all go into the input `features` of a later stage.
                if name in passed_on or re.sub(r"_\d+$", "", name) in passed_on:
                    continue
                heads |= {names[layer] for layer in _nearest(output.grad_fn, sources) if isinstance(layer, LAYERS)}
    return LayerTrace(tuple(order), norm_of, frozenset(heads))


def _nearest(start: Any, sources: dict[Any, nn.Module]) -> Iterator[nn.Module]:
    """The layers and norms that are met first on every way back through the autograd graph."""
    stack, seen = [start], set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in sources:
            yield sources[node]
        else:
            stack.extend(following for following, _ in node.next_functions)


@contextmanager
def hooked(
    layers: Iterable[nn.Module], hook: Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]
) -> Iterator[None]:
    """While it is entered, ``hook`` is told of every run of ``layers``: the layer, what it took and what it gave."""
    handles = [layer.register_forward_hook(hook) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
