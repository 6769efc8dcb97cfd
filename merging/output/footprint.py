"""Count the bytes of weights that a bundle of some models would hold. A merge reports its saving in these bytes.

A bundle holds fewer bytes than the state dicts:

- A BatchNorm behind a convolution is four vectors in PyTorch. In a bundle it is one vector (a bias) if it is folded
  into the convolution, and two vectors (scale and shift) if it stays separate because the kernel is shared.
- Small kernels take in their BatchNorms even if the kernels are shared, and are then different tensors again.
- A kernel that is kept as codes counts as its codes and scales, and its base, or the codes and scales of its base,
  counts once. A BatchNorm that is folded into it is one more vector, its gain. Without a base it goes into the scales.
- Layers that never run are not compiled.
- Equal tensors are held once, whether merging made them equal or not.

The compiler's own passes decide what is folded, so that a merge and a bundle count alike. Here these passes run on
graphs that contain only a model's convolutions and BatchNorms. The counts can still differ for things that PyTorch's
layers do not show: constants that only the exported graph has (a table of positions, the factors of an ONNX file),
layers that are called as functions, and shapes that the compiler cannot infer, since shapes decide which kernels are
small.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from torch import Tensor, nn

from ...bundles.blob import tensor_id
from ...bundles.codes import pack_codes
from ...compiler.passes import choose_batch_norm, fold
from ...compiler.passes.edit import constant, replace_constant
from ..forms.quantize import Base, Coded
from ..training.subjects import Subject
from .skeleton import NORM_FIELDS, Skeleton, skeleton_of

__all__ = ["StoredForm", "StoredModel", "bundle_bytes", "held_by"]


@dataclass(frozen=True)
class StoredForm:
    """What a bundle holds of a kernel that is kept as codes, besides a folded BatchNorm."""

    codes: Coded
    base: Base | None = None
    """Base that the codes are added to; None if the codes are the kernel itself."""

    def sizes(self, folded: str | None) -> Iterator[tuple[str, int]]:
        """Yield the id and the size in bytes of each tensor that the kernel is computed from.

        Args:
            folded: tensor id of the kernel with the BatchNorm that is folded into it; None if there is none.
        """
        arrays: list[NDArray[Any]] = [*_arrays(self.codes)]
        if self.base is not None:
            arrays += [self.base.kernel.numpy()] if self.base.coded is None else _arrays(self.base.coded)
        elif folded is not None:
            # The gain goes into the scales.
            del arrays[1]
        yield from ((tensor_id(array), array.nbytes) for array in arrays)
        if folded is not None:
            yield f"{folded} gain", self.codes.scale.numpy().nbytes


def _arrays(coded: Coded) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return codes and scales as a bundle holds them."""
    return pack_codes(coded.codes.numpy(), coded.bits), coded.scale.numpy()


@dataclass(frozen=True)
class StoredModel:
    """A model's structure and weights, from which the bytes of a bundle are counted."""

    skeleton: Skeleton
    state: Mapping[str, Tensor]
    """State dict of the model, on the CPU."""
    others: tuple[NDArray[Any], ...] = ()
    """Tensors of the model's decoder, such as anchors."""
    forms: Mapping[str, StoredForm] = field(default_factory=dict)
    """Name in the state dict -> what a bundle holds of the kernel, for kernels that are kept as codes."""


_SKELETONS: WeakKeyDictionary[nn.Module, Skeleton] = WeakKeyDictionary()
"""Stage ``main`` of an original model -> the model's structure, kept so that each model is run only once."""


def held_by(
    subject: Subject, state: Mapping[str, Tensor] | None = None, forms: Mapping[str, StoredForm] | None = None
) -> StoredModel:
    """Return a model with its weights in the form that :func:`bundle_bytes` counts.

    Args:
        subject: the model.
        state: state dict of the model, on the CPU; None for the weights that the model had before anything was merged.
        forms: name in the state dict -> what a bundle holds of the kernel, for kernels that are kept as codes.
    """
    stage = subject.teacher.module
    if stage not in _SKELETONS:
        example = next(iter(subject.network.cut.stages["main"].inputs.values()))
        _SKELETONS[stage] = skeleton_of(stage, example[:1].to(subject.device))
    if state is None:
        model = stage.model
        assert isinstance(model, nn.Module)
        state = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    return StoredModel(_SKELETONS[stage], state, tuple(subject.network.cut.tensors.values()), forms or {})


def bundle_bytes(models: Iterable[StoredModel]) -> int:
    """Return the bytes of weights in a bundle of ``models``, counting each distinct tensor once."""
    models = list(models)
    graphs = [_graph(model) for model in models]
    bases = [form.base for model in models for form in model.forms.values() if form.base is not None]
    keep = choose_batch_norm(graphs, [tensor_id(base.kernel.numpy()) for base in bases if base.coded is None]).keep
    sizes: dict[str, int] = {}
    for model, graph in zip(models, graphs, strict=True):
        seen = set(graph.graph.initializers)
        fold(graph, keep)
        folded = {name: constant(value) for name, value in graph.graph.initializers.items()}
        for name, array in chain(folded.items(), _other_weights(model, seen), (("", other) for other in model.others)):
            if (form := model.forms.get(name)) is not None:
                same = np.array_equal(array, model.state[name].numpy())
                sizes |= form.sizes(None if same else tensor_id(array))
            # A single number is stored in the graph, not among the weights.
            elif array.size > 1:
                sizes[tensor_id(array)] = array.nbytes
    return sum(sizes.values())


def _other_weights(model: StoredModel, seen: Collection[str]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield name and value of the floating-point weights that a model's graph of convolutions and BatchNorms lacks.

    Integer tensors, such as BatchNorm's counters of training steps, are left out.

    Args:
        model: the model.
        seen: names of the weights that are in the graph (:func:`_graph`).
    """
    for name in model.skeleton.used:
        if name not in seen and model.state[name].is_floating_point():
            yield name, model.state[name].numpy()


def _graph(model: StoredModel) -> ir.Model:
    """Build a graph of a model's convolutions, each with its own input and output and followed by its BatchNorm."""
    values: dict[str, ir.Value] = {}

    def weight(name: str) -> ir.Value:
        """Return the initializer for a name in the state dict; layers that use one weight get one initializer."""
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
