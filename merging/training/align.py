"""Channels of one model in the order of another's, so that an average of their weights means something.

What a layer computes does not depend on the order of its channels if all that reads them follows. Weight matching of
Ainsworth et al., "Git Re-Basin: Merging Models modulo Permutation Symmetries" (ICLR 2023): for one set of channels
after the other, the order in which weights are most like the reference's. Which dimensions of which layers hold the
same channels is found by Torch-Pruning's dependency graph (Fang et al., "DepGraph", CVPR 2023).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from ..models.trace import LAYERS, NORMS
from .subjects import Subject, outputs_of

__all__ = ["align"]

_SWEEPS = 20
_SAME = 1e-3
"""Largest change of an output, relative to the largest output, by summing in another order."""


@dataclass(frozen=True)
class _Side:
    """A dimension of a tensor that holds channels."""

    tensor: Tensor
    dimension: int
    places: Tensor
    """Indices of each channel in the dimension, ``[C, K]``: behind a flattened map a channel has several."""


_Channels = tuple[_Side, ...]
"""All that holds the same channels."""


@torch.no_grad()
def align(subject: Subject, image: Tensor, pairs: Collection[tuple[Tensor, nn.Parameter]]) -> None:
    """Reorder a model's channels, in place, so that its weights are like others; what it computes stays the same.

    Channels whose order cannot be changed, as those of an input or an output, stay where they are.

    Args:
        subject: the model.
        image: an input of it, ``[1, C, H, W]``.
        pairs: a weight, and the model's own that is to be like it, of the same shape.
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
    """Of each channel of a weight (rows) to each of a model's own (columns), ``[C, C]``."""
    theirs, ours = (each.movedim(side.dimension, 0)[side.places].flatten(1) for each in (weight, side.tensor))
    return theirs @ ours.T


@torch.no_grad()
def _reorder(channels: _Channels, order: Tensor) -> bool:
    """Put channel ``order[i]`` at place i, everywhere; whether that changes anything."""
    if torch.equal(order, torch.arange(len(order))):
        return False
    for side in channels:
        index = torch.arange(side.tensor.shape[side.dimension])
        index[side.places.flatten()] = side.places[order].flatten()
        side.tensor.copy_(side.tensor.index_select(side.dimension, index.to(side.tensor.device)))
    return True


def _channels(subject: Subject, image: Tensor) -> list[_Channels]:
    """All channels of a model that may come in another order."""
    import torch_pruning

    heads = [subject.model.get_submodule(name) for name in subject.traced.heads]
    subject.student.eval()
    try:
        with torch.enable_grad():
            for parameter in subject.model.parameters():
                parameter.requires_grad_(True)
            graph = torch_pruning.DependencyGraph().build_dependency(subject.student, image, verbose=False)
            groups = list(graph.get_all_groups(ignored_layers=heads))
    except Exception:  # It follows what models do by rules of its own, and fails in many ways where one is unusual.
        return []
    found = (_sides(graph, group) for group in groups)
    return [each for each in found if each and _holds(subject, image, each)]


def _sides(graph: Any, group: Any) -> _Channels:
    """What a group of the dependency graph stands for; nothing where it has a layer that is not known here."""
    sides: dict[tuple[int, int], _Side] = {}
    for item in group:
        layer = item.dep.target.module
        # A sum or a concatenation, say.
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
            # Padding of channels is not understood: it moves them.
            if int(places.max()) >= tensor.shape[dimension]:
                return ()
            sides[id(tensor), dimension] = _Side(tensor, dimension, places)
    return tuple(sides.values()) if len({len(side.places) for side in sides.values()}) == 1 else ()


def _held(layer: Any, out: bool) -> list[tuple[Tensor, int]]:
    """The tensors of a layer, and in which dimension, that hold the channels it writes, or those it reads."""
    if isinstance(layer, NORMS):
        found = [(layer.weight, 0), (layer.bias, 0), (layer.running_mean, 0), (layer.running_var, 0)]
        return [(tensor, dimension) for tensor, dimension in found if tensor is not None]
    if not isinstance(layer, LAYERS):
        return []
    written, read = 0, 1
    if not isinstance(layer, nn.Linear):
        if layer.groups == layer.in_channels == layer.out_channels:
            # Each filter of a depthwise convolution reads the channel that it writes.
            out = True
        elif layer.groups > 1:
            return []
        elif layer.transposed:
            written, read = 1, 0
    if not out:
        return [(layer.weight, read)]
    return [(layer.weight, written), *([] if layer.bias is None else [(layer.bias, 0)])]


@torch.no_grad()
def _holds(subject: Subject, image: Tensor, channels: _Channels) -> bool:
    """Whether the model computes the same in another order of channels: a graph may not see all that depends on it."""
    before = outputs_of(subject.student, image)
    count = len(channels[0].places)
    _reorder(channels, torch.arange(count).roll(1))
    after = outputs_of(subject.student, image)
    _reorder(channels, torch.arange(count).roll(-1))
    return all(
        bool((ours - theirs).abs().max() <= _SAME * theirs.abs().max())
        for ours, theirs in zip(after, before, strict=True)
    )
