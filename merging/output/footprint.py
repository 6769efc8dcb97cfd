"""What a bundle holds of models: the bytes that merging is measured by.

They are fewer than those of the state dicts. A BatchNorm behind a convolution is four vectors in PyTorch; in a bundle
it is one, a bias, where it is folded, and two, scale and shift, where it stays apart because the kernel is shared.
Small kernels are folded although they are shared, and are then several again. Layers that never run are not compiled;
what is equal is held once, whether merging made it so or not.

So that a merge and a bundle count alike, the compiler's own passes decide here, on graphs of nothing but a model's
convolutions and BatchNorms. What can still differ is what PyTorch's layers do not tell: constants that only the graph
has (a table of positions, the factors of an ONNX file), layers that are called as functions, and shapes that the
compiler cannot infer, as these decide which kernels are small.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from torch import Tensor, nn

from ...bundles.blob import tensor_id
from ...compiler.passes import choose_batch_norm, fold
from ...compiler.passes.edit import constant, replace_constant
from ..training.subjects import Subject
from .skeleton import NORM_FIELDS, Skeleton, skeleton_of

__all__ = ["StoredModel", "bundle_bytes", "held_by"]


@dataclass(frozen=True)
class StoredModel:
    """What a bundle is to hold: a model with some weights."""

    skeleton: Skeleton
    state: Mapping[str, Tensor]
    """On the CPU."""
    others: tuple[NDArray[Any], ...] = ()
    """Tensors of its decoder."""


_KNOWN: WeakKeyDictionary[nn.Module, Skeleton] = WeakKeyDictionary()


def held_by(subject: Subject, state: Mapping[str, Tensor] | None = None) -> StoredModel:
    """A model with the weights ``state``, or with those that it had before anything was merged."""
    stage = subject.teacher.module
    if stage not in _KNOWN:
        example = next(iter(subject.network.cut.stages["main"].inputs.values()))
        _KNOWN[stage] = skeleton_of(stage, example[:1].to(subject.device))
    if state is None:
        model = stage.model
        assert isinstance(model, nn.Module)
        state = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    return StoredModel(_KNOWN[stage], state, tuple(subject.network.cut.tensors.values()))


def bundle_bytes(models: Iterable[StoredModel]) -> int:
    """Bytes of weights in a bundle of ``models``, each distinct tensor once."""
    models = list(models)
    graphs = [_graph(model) for model in models]
    keep = choose_batch_norm(graphs).keep
    sizes: dict[str, int] = {}
    for model, graph in zip(models, graphs, strict=True):
        seen = set(graph.graph.initializers)
        fold(graph, keep)
        for array in (*map(constant, graph.graph.initializers.values()), *_rest(model, seen), *model.others):
            # A single number is part of the graph.
            if array.size > 1:
                sizes[tensor_id(array)] = array.nbytes
    return sum(sizes.values())


def _rest(model: StoredModel, seen: Collection[str]) -> Iterator[NDArray[Any]]:
    """Weights that the passes leave alone; counters of training steps are none."""
    for name in model.skeleton.used:
        if name not in seen and model.state[name].is_floating_point():
            yield model.state[name].numpy()


def _graph(model: StoredModel) -> ir.Model:
    """The convolutions of a model side by side, each with an input of its own, and the BatchNorms behind them."""
    values: dict[str, ir.Value] = {}

    def weight(name: str) -> ir.Value:
        if name not in values:
            values[name] = ir.Value(name=name)
            replace_constant(values[name], np.ascontiguousarray(model.state[name].numpy()))
        return values[name]

    inputs: list[ir.Value] = []
    outputs: list[ir.Value] = []
    nodes: list[ir.Node] = []
    for index, site in enumerate(model.skeleton.sites):
        inputs.append(ir.Value(name=f"in{index}"))
        parameters = [name for field in NORM_FIELDS[:2] if (name := f"{site.layer}.{field}") in model.state]
        node = ir.node(site.operator, [inputs[-1], *map(weight, parameters)], attributes={"group": site.groups})
        node.outputs[0].shape = ir.Shape(site.shape)
        nodes.append(node)
        if site.norm is not None:
            node.outputs[0].name = f"between{index}"
            vectors = [weight(f"{site.norm}.{field}") for field in NORM_FIELDS]
            node = ir.node("BatchNormalization", [node.outputs[0], *vectors], attributes={"epsilon": site.epsilon})
            nodes.append(node)
        node.outputs[0].name = f"out{index}"
        outputs.append(node.outputs[0])
    graph = ir.Graph(inputs, outputs, nodes=nodes, initializers=list(values.values()), opset_imports={"": 20})
    return ir.Model(graph, ir_version=10)
