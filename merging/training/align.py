"""Channel alignment by weight matching: permute one model's channels so that its weights resemble another model's.

A network computes the same outputs after the channels of a layer are permuted, if every layer that reads the channels
is permuted too. Averaging weights is only useful between models with similar channel orders. The algorithm is weight
matching of Ainsworth et al., "Git Re-Basin: Merging Models modulo Permutation Symmetries" (ICLR 2023): coordinate
descent over the permutations, each of which is the solution of a linear assignment problem. Torch-Pruning's dependency
graph (Fang et al., "DepGraph", CVPR 2023) tells which dimensions of which tensors must be permuted together.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from ..models.trace import LAYERS, NORMS
from ..tasks import Outputs
from .subjects import Subject, outputs_of

__all__ = ["align"]

_SWEEPS = 20
"""Maximum number of sweeps of coordinate descent, each over all permutations of a model."""
_SAME = 1e-3
"""Largest change of an output, as a fraction of the largest absolute output, that counts as rounding.

Permuting channels changes the order in which numbers are summed, and so the rounding."""


@dataclass(frozen=True)
class _Side:
    """Dimension of a tensor whose entries belong to the channels that one permutation reorders."""

    tensor: Tensor
    dimension: int
    places: Tensor
    """Indices, along one tensor dimension, of the K entries that belong to each of C channels, ``[C, K]``. K is above 1
    only for a layer that reads a flattened feature map."""


_Channels = tuple[_Side, ...]
"""All tensor dimensions that one permutation of channels must reorder together."""


@torch.no_grad()
def align(subject: Subject, image: Tensor, pairs: Collection[tuple[Tensor, nn.Parameter]]) -> None:
    """Permute a model's channels, in place, so that its weights resemble reference weights.

    The model computes the same outputs afterwards. Channels whose order is fixed, such as those of an input or an
    output, keep their order. A model that the dependency graph of Torch-Pruning cannot handle is not changed.

    Args:
        subject: the model.
        image: an input of the model, ``[1, C, H, W]``.
        pairs: pairs of (reference weight, weight of the model); both have the same shape, and the model's weight is
            made similar to the reference weight.
    """
    wanted = {id(own): weight for weight, own in pairs}
    channels = [each for each in _channels(subject, image) if any(id(side.tensor) in wanted for side in each)]
    for _ in range(_SWEEPS):
        moved = False
        for each in channels:
            likeness = torch.stack(
                [_likeness(side, wanted[id(side.tensor)]) for side in each if id(side.tensor) in wanted]
            )
            _, order = linear_sum_assignment(likeness.sum(0).cpu().numpy(), maximize=True)
            moved |= _reorder(each, torch.from_numpy(order))
        if not moved:
            break


def _likeness(side: _Side, weight: Tensor) -> Tensor:
    """Return the inner products of a reference weight's channels (rows) and a model's (columns), ``[C, C]``."""
    theirs, ours = (each.movedim(side.dimension, 0)[side.places].flatten(1) for each in (weight, side.tensor))
    return theirs @ ours.T


@torch.no_grad()
def _reorder(channels: _Channels, order: Tensor) -> bool:
    """Move channel ``order[i]`` to index i in all dimensions of ``channels``, in place; return whether any moved."""
    if torch.equal(order, torch.arange(len(order))):
        return False
    for side in channels:
        index = torch.arange(side.tensor.shape[side.dimension])
        index[side.places.flatten()] = side.places[order].flatten()
        side.tensor.copy_(side.tensor.index_select(side.dimension, index.to(side.tensor.device)))
    return True


def _channels(subject: Subject, image: Tensor) -> list[_Channels]:
    """Return, for each set of channels that the model allows to permute, all tensor dimensions to reorder together."""
    import torch_pruning

    heads = [subject.model.get_submodule(name) for name in subject.traced.heads]
    subject.student.eval()
    try:
        with torch.enable_grad():
            for parameter in subject.model.parameters():
                parameter.requires_grad_(True)
            graph = torch_pruning.DependencyGraph().build_dependency(subject.student, image, verbose=False)
            groups = list(graph.get_all_groups(ignored_layers=heads))
    except Exception:  # Torch-Pruning traces models by rules of its own and fails in many ways on unusual ones.
        return []
    found = (_sides(graph, group) for group in groups)
    outputs = outputs_of(subject.student, image)
    return [each for each in found if each and _is_symmetry(subject, image, outputs, each)]


def _sides(graph: Any, group: Any) -> _Channels:
    """Return the tensor dimensions that a group of Torch-Pruning's dependency graph ties together.

    The result is empty if a layer is of an unknown kind, or if the indices of the channels are ambiguous.
    """
    sides: dict[tuple[int, int], _Side] = {}
    for item in group:
        layer = item.dep.target.module
        # Modules without parameters and buffers hold no channels: a sum or a concatenation, for example.
        if isinstance(layer, nn.Module) and not [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]:
            continue
        channels: dict[int, list[int]] = {}
        for place, channel in zip(item.idxs, item.root_idxs, strict=True):
            channels.setdefault(channel, []).append(place)
        held = _held(layer, graph.is_out_channel_pruning_fn(item.dep.handler))
        if not held or len({len(places) for places in channels.values()}) != 1:
            return ()
        places = torch.tensor([channels[channel] for channel in sorted(channels)])
        for tensor, dimension in held:
            # An index beyond the dimension means that channels were padded, which shifts them in unknown ways.
            if int(places.max()) >= tensor.shape[dimension]:
                return ()
            sides[id(tensor), dimension] = _Side(tensor, dimension, places)
    return tuple(sides.values()) if len({len(side.places) for side in sides.values()}) == 1 else ()


def _held(layer: Any, out: bool) -> list[tuple[Tensor, int]]:
    """Return the tensors of a layer that hold channels, each with the dimension in which the channels lie.

    Args:
        layer: the layer; the result is empty for a layer of an unknown kind.
        out: whether to return the tensors that hold output channels; otherwise those that hold input channels.
    """
    if isinstance(layer, NORMS):
        found = [(layer.weight, 0), (layer.bias, 0), (layer.running_mean, 0), (layer.running_var, 0)]
        return [(tensor, dimension) for tensor, dimension in found if tensor is not None]
    if not isinstance(layer, LAYERS):
        return []
    written, read = 0, 1
    if not isinstance(layer, nn.Linear):
        if layer.groups == layer.in_channels == layer.out_channels:
            # A depthwise filter reads the channel that it writes, so input and output channels are one dimension.
            out = True
        elif layer.groups > 1:
            return []
        elif layer.transposed:
            written, read = 1, 0
    if not out:
        return [(layer.weight, read)]
    return [(layer.weight, written), *([] if layer.bias is None else [(layer.bias, 0)])]


@torch.no_grad()
def _is_symmetry(subject: Subject, image: Tensor, outputs: Outputs, channels: _Channels) -> bool:
    """Check on one image that the model's ``outputs`` do not change when channels are permuted.

    The check is needed because the dependency graph may miss an operation that depends on the channels' order.
    """
    count = len(channels[0].places)
    _reorder(channels, torch.arange(count).roll(1))
    after = outputs_of(subject.student, image)
    _reorder(channels, torch.arange(count).roll(-1))
    return all(
        bool((ours - theirs).abs().max() <= _SAME * theirs.abs().max())
        for ours, theirs in zip(after, outputs, strict=True)
    )
