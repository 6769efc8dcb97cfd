"""Run of a PyTorch module on noise in which every operation is watched.

The run shows which outputs end in a softmax, sigmoid or argmax, and whether a BatchNorm uses the batch's statistics.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from ...errors import ModelError
from .module_outputs import flatten_outputs
from .stages import attempt

__all__ = ["Observed", "observe"]

Applied = Literal["softmax", "sigmoid"]
"""Name of the activation with which a module's output ends."""

_ENDS: dict[str, Applied] = {
    "_softmax": "softmax",
    "_safe_softmax": "softmax",
    "sigmoid": "sigmoid",
    "sigmoid_": "sigmoid",
    "hardsigmoid": "sigmoid",
    "hardsigmoid_": "sigmoid",
}
"""PyTorch operation -> the activation that the operation computes."""
_PASSING = frozenset(
    {
        *("_to_copy", "alias", "clone", "contiguous", "detach"),
        *("_reshape_alias", "_unsafe_view", "expand", "flatten", "permute", "squeeze", "t", "transpose", "unsqueeze"),
        *("cat", "select", "slice", "view"),
        *("clamp", "clamp_max", "clamp_min"),
        *("_upsample_bilinear2d_aa", "upsample_bicubic2d", "upsample_bilinear2d", "upsample_nearest2d"),
    }
)
"""PyTorch operations whose results are probabilities if their inputs are.

They change only the shape, type, range or size of a tensor."""
_NORMS = frozenset({"_native_batch_norm_legit", "cudnn_batch_norm", "miopen_batch_norm", "native_batch_norm"})
"""PyTorch's batch normalisation operations that have the argument ``training``."""
_TRAINING = 5
"""Position of the argument ``training`` in PyTorch's batch normalisation operations."""


@dataclass
class Observed:
    """Outputs of a module for a batch of noise, with the activation or argmax that each output ends in."""

    outputs: dict[str, Tensor] = field(default_factory=dict)
    """Tensors that the module returned for the noise, by dotted name."""
    activations: dict[str, Applied] = field(default_factory=dict)
    """Activation that the module itself applies at the end of an output, by the output's name."""
    classes: dict[str, int] = field(default_factory=dict)
    """Number of classes that an output of class numbers (argmax) chooses from, by the output's name."""


def observe(model: nn.Module, module: nn.Module, image: Tensor) -> Observed:
    """Run a module on a batch of images, and return its outputs with the activation or argmax that each ends in.

    Args:
        model: whole model, whose class errors name.
        module: module to run: the model, or a stage that holds it as the attribute ``model``.
        image: batch of two or more images.

    Raises:
        ModelError: the module does not run on such images, returns no tensor, or a BatchNorm uses the statistics of the
            batch, so that the result for one image would depend on the other images.
    """
    watch = _Watch()
    with _innermost(module, watch), watch:
        returned = attempt(model, module, image)
    if watch.trained is not None:
        raise ModelError(
            f"{type(model).__name__}: {watch.trained} is in training mode and normalises with the statistics of each"
            " batch, so that a result would depend on the other images; do not call train() in forward, and give"
            " BatchNorm layers track_running_stats=True"
        )
    outputs = flatten_outputs(returned)
    if not outputs:
        raise ModelError(f"{type(model).__name__} returns no tensor but {type(returned).__name__}")
    observed = Observed(outputs)
    for name, value in outputs.items():
        end = watch.end(value)
        if isinstance(end, int):
            observed.classes[name] = end
        elif end is not None:
            observed.activations[name] = end
    return observed


class _Watch(TorchDispatchMode):
    """PyTorch dispatch mode that records the activation or argmax each tensor ends in, and which layer is training."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.running: list[str] = []
        """Names of the watched module's submodules that are running, the innermost last."""
        self.trained: str | None = None
        """Name of the first layer that normalised with the statistics of a batch of images."""
        self._ends = WeakTensorKeyDictionary()

    def end(self, value: Tensor) -> Applied | int | None:
        """Return the activation that a tensor is the result of, or the number of classes that an argmax chose from."""
        return cast("Applied | int | None", self._ends.get(value))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name in _NORMS and self.trained is None and _uses_batch(name, args, func):
            # The module that runs is a stage, with the whole model under the name `model`.
            _, _, layer = self.running[-1].partition(".") if self.running else ("", "", "")
            self.trained = f"layer {layer}" if layer else "a batch_norm"
        ends = {self.end(each) for each in _tensors(args)} if name in _PASSING else set()
        result = func(*args, **kwargs)
        end = _ENDS.get(name) or (ends.pop() if len(ends) == 1 else None)
        if name == "argmax" and len(args) > 1 and args[1] is not None:
            end = args[0].shape[args[1]]
        for value in _tensors((result,)):
            if end is None:
                self._ends.pop(value, None)
            else:
                self._ends[value] = end
        return result


def _uses_batch(name: str, args: Any, func: Any) -> bool:
    """Return whether a batch normalisation takes mean and variance from several images.

    Instance normalisation, and weight standardisation, are batch normalisations of a batch of one: these do not count.
    """
    position = _TRAINING if "no_stats" not in str(func) else _TRAINING - 2
    return bool(args[position]) and args[0].shape[0] > 1


def _tensors(values: Any) -> Iterator[Tensor]:
    """Yield the tensors among the arguments or results of an operation, including those in lists."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from (each for each in value if isinstance(each, Tensor))


@contextlib.contextmanager
def _innermost(module: nn.Module, watch: _Watch) -> Iterator[None]:
    """Record the names of the submodules that are running in ``watch.running``, during the ``with`` block."""

    def enter(name: str) -> Any:
        def hook(layer: nn.Module, inputs: Any) -> None:
            watch.running.append(name)

        return hook

    def leave(layer: nn.Module, inputs: Any, output: Any) -> None:
        watch.running.pop()

    handles = []
    for name, layer in module.named_modules():
        if isinstance(layer, torch.jit.ScriptModule):
            continue
        handles.append(layer.register_forward_pre_hook(enter(name)))
        handles.append(layer.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
