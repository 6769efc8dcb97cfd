"""What the compiler makes of a model's layers, whatever their weights are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...compiler.heads import as_tuple
from ..models.trace import NORMS, hooked

__all__ = ["NORM_FIELDS", "Site", "Skeleton", "skeleton_of"]

NORM_FIELDS = ("weight", "bias", "running_mean", "running_var")
"""A BatchNorm's vectors, in the order of the ONNX node's inputs."""

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Site:
    """One run of a convolution, and the BatchNorm that takes what it gives where nothing else does.

    Names are those of ``named_modules`` of the model.
    """

    layer: str
    operator: str
    groups: int
    shape: tuple[int, ...]
    """Of the output for one image, ``[1, C, ...]``."""
    norm: str | None
    epsilon: float


@dataclass(frozen=True)
class Skeleton:
    """A model without its weights."""

    sites: tuple[Site, ...]
    used: tuple[str, ...]
    """Names in the state dict: what is compiled of it. Layers that never run (auxiliary classifiers) are not."""


@dataclass(frozen=True)
class _Run:
    module: nn.Module
    taken: Any
    """The autograd node of its input."""
    made: Any
    """That of its output, read at once: an activation in place gives the tensor another."""
    shape: tuple[int, ...]


def skeleton_of(stage: nn.Module, image: Tensor) -> Skeleton:
    """Run a model once: hooks see its layers, and what autograd recorded tells who takes what from whom.

    Args:
        stage: the stage ``main`` in eval mode; its attribute ``model`` is the whole model. It stays as it is.
        image: ``[1, C, height, width]``, where the stage is.
    """
    model = stage.model
    assert isinstance(model, nn.Module)
    # Leaves of our own: a teacher's parameters ask for no gradient. Two names of one weight are one leaf.
    leaves = {name: value.detach().requires_grad_() for name, value in stage.named_parameters()}
    runs: list[_Run] = []

    def see(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        runs.append(_Run(module, inputs[0].grad_fn, output.grad_fn, (1, *output.shape[1:])))

    layers = [module for module in model.modules() if isinstance(module, _CONVOLUTIONS + NORMS)]
    with hooked(layers, see), torch.enable_grad():
        outputs = torch.func.functional_call(stage, leaves, (image.detach().clone().requires_grad_(),))
    ends = [output.grad_fn for output in as_tuple(outputs)]
    readers: Counter[Any] = Counter(ends)
    reached: set[int] = set()
    for node in _walk(ends):
        readers.update(following for following, _ in node.next_functions)
        reached.add(id(getattr(node, "variable", None)))
    used = {name.removeprefix("model.") for name, leaf in leaves.items() if id(leaf) in reached}
    used |= set(_buffers(model, {run.module for run in runs}))
    return Skeleton(tuple(_sites(model, runs, readers)), tuple(name for name in model.state_dict() if name in used))


def _sites(model: nn.Module, runs: Iterable[_Run], readers: Counter[Any]) -> Iterator[Site]:
    names = {module: name for name, module in model.named_modules()}
    norm_of = {run.taken: run.module for run in runs if isinstance(run.module, NORMS)}
    for run in runs:
        if not isinstance(run.module, _CONVOLUTIONS):
            continue
        norm = norm_of.get(run.made) if readers[run.made] == 1 else None
        # Without all four the compiler sees none either: what it is given in their place is computed.
        whole = isinstance(norm, NORMS) and all(getattr(norm, field) is not None for field in NORM_FIELDS)
        yield Site(
            names[run.module],
            "ConvTranspose" if run.module.transposed else "Conv",
            run.module.groups,
            run.shape,
            names[norm] if norm is not None and whole else None,
            norm.eps if norm is not None and whole else 0.0,
        )


def _buffers(model: nn.Module, ran: Set[nn.Module]) -> Iterator[str]:
    """Those that are kept in the state dict; statistics only of BatchNorms that ran."""
    kept = model.state_dict().keys()
    for path, module in model.named_modules():
        if isinstance(module, NORMS) and module not in ran:
            continue
        for name, _ in module.named_buffers(path, recurse=False):
            if name in kept:
                yield name


def _walk(ends: Iterable[Any]) -> Iterator[Any]:
    """Every node of an autograd graph."""
    stack, seen = list(ends), set()
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            stack.extend(following for following, _ in node.next_functions)
