"""Skeleton: the structure of a model that decides how it is compiled, i.e. its convolutions and their BatchNorms."""

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
"""Attributes of a PyTorch BatchNorm that hold its vectors, in the order of the ONNX node's inputs."""

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Site:
    """One run of a convolution, with the BatchNorm that is the only reader of its output, if there is one.

    Names are those of the model's ``named_modules``.
    """

    layer: str
    """Name of the convolution in the model's ``named_modules``."""
    operator: str
    """ONNX operator that the convolution becomes, ``Conv`` or ``ConvTranspose``."""
    groups: int
    shape: tuple[int, ...]
    """Shape of the convolution's output for one image, ``[1, C, ...]``."""
    norm: str | None
    """Name of the BatchNorm behind the convolution, or None if there is none that can be folded."""
    epsilon: float
    """Epsilon of the BatchNorm behind the convolution; 0 if ``norm`` is None."""


@dataclass(frozen=True)
class Skeleton:
    """Structure of a model that decides how it is compiled, without the model's weights."""

    sites: tuple[Site, ...]
    """All runs of the model's convolutions, in the order in which they happen."""
    used: tuple[str, ...]
    """Names in the state dict of the tensors that are compiled. Tensors of layers that never run (auxiliary
    classifiers) are left out."""


@dataclass(frozen=True)
class _Run:
    """One run of a convolution or BatchNorm, as a hook recorded it."""

    module: nn.Module
    input_node: Any
    """Autograd node that made the layer's input."""
    output_node: Any
    """Autograd node of the layer's output, read right after the run: a later in-place activation changes the node."""
    shape: tuple[int, ...]
    """Shape of the layer's output for one image, ``[1, C, ...]``."""


def skeleton_of(stage: nn.Module, image: Tensor) -> Skeleton:
    """Run a model once and return its skeleton: its convolutions and BatchNorms.

    Hooks record the layers. The autograd graph tells which layer reads the output of which other layer.

    Args:
        stage: the stage ``main`` in eval mode, whose attribute ``model`` is the whole model; it is not changed.
        image: one image, ``[1, C, height, width]``, on the device of the stage.
    """
    model = stage.model
    assert isinstance(model, nn.Module)
    # New leaves, because a teacher's parameters do not require gradients. Two names of one weight are one leaf.
    leaves = {name: value.detach().requires_grad_() for name, value in stage.named_parameters()}
    runs: list[_Run] = []

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        runs.append(_Run(module, inputs[0].grad_fn, output.grad_fn, (1, *output.shape[1:])))

    layers = [module for module in model.modules() if isinstance(module, _CONVOLUTIONS + NORMS)]
    with hooked(layers, record), torch.enable_grad():
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
    """Yield a :class:`Site` for each run of a convolution.

    Args:
        model: the whole model.
        runs: runs of convolutions and BatchNorms, in order.
        readers: autograd node -> number of nodes and model outputs that read its result.
    """
    names = {module: name for name, module in model.named_modules()}
    norm_of = {run.input_node: run.module for run in runs if isinstance(run.module, NORMS)}
    for run in runs:
        if not isinstance(run.module, _CONVOLUTIONS):
            continue
        norm = norm_of.get(run.output_node) if readers[run.output_node] == 1 else None
        # The compiler does not fold a BatchNorm without all four vectors either: the graph computes the missing ones.
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
    """Yield the state-dict names of a model's buffers, without the buffers of BatchNorms that never ran."""
    kept = model.state_dict().keys()
    for path, module in model.named_modules():
        if isinstance(module, NORMS) and module not in ran:
            continue
        for name, _ in module.named_buffers(path, recurse=False):
            if name in kept:
                yield name


def _walk(ends: Iterable[Any]) -> Iterator[Any]:
    """Yield every node of an autograd graph once, starting from the output nodes ``ends``."""
    stack, seen = list(ends), set()
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            stack.extend(following for following, _ in node.next_functions)
