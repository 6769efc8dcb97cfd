"""Run a model once to find the order of its layers, the BatchNorm behind each, and the layers that give its outputs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from ...compiler.heads import Cut, as_tuple

__all__ = ["LAYERS", "NORMS", "LayerTrace", "hooked", "trace_layers"]

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)
"""Layer classes whose weights can be shared."""
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
"""BatchNorm classes, which can be folded into the convolution before them."""

Hook = Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]
"""Function that is called after each run of a layer, with the layer, its inputs and its output."""


@dataclass(frozen=True)
class LayerTrace:
    """Order, BatchNorms and heads of a model's layers, by the names of the model's ``named_modules``."""

    order: tuple[str, ...]
    """Names of the convolutions and linear layers in the order in which they first ran, each once."""
    norm_of: dict[str, str]
    """Layer name -> name of the BatchNorm whose input is the layer's output, with nothing in between."""
    heads: frozenset[str]
    """Names of the layers that give an output of the model, with no other layer or BatchNorm in between."""


def trace_layers(cut: Cut) -> LayerTrace:
    """Run every stage of a model on its example inputs, and return the order, the BatchNorms and the heads of layers.

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

    def record(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        # The autograd node identifies what made a tensor; an in-place activation leaves the tensor object the same.
        before = sources.get(inputs[0].grad_fn)
        sources[output.grad_fn] = layer
        if isinstance(layer, LAYERS):
            order[names[layer]] = None
        elif isinstance(before, LAYERS):
            norm_of[names[before]] = names[layer]

    heads: set[str] = set()
    passed_on = {name for stage in cut.stages.values() for name in stage.inputs}
    # Nothing runs backward, so no layer has to keep its input: of a large detector, that is a gigabyte.
    unsaved = saved_tensors_hooks(lambda tensor: None, lambda nothing: nothing)
    with hooked(names, record), torch.enable_grad(), unsaved:
        for stage in cut.stages.values():
            # One image of a batch is enough. The inputs require gradients, because a model of frozen weights would
            # otherwise have no autograd graph.
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
    """Yield the layers and BatchNorms that come first on every path back through the autograd graph from an output.

    Args:
        start: autograd node of the output.
        sources: autograd node -> the layer or BatchNorm whose run made the node.
    """
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
def hooked(layers: Iterable[nn.Module], hook: Hook) -> Iterator[None]:
    """Call ``hook`` after every run of one of ``layers`` inside a ``with`` block."""
    handles = [layer.register_forward_hook(hook) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
