"""Closed-form errors: how well one kernel can stand for the kernels of several models, before anything is trained.

RegMean (Jin et al., "Dataless Knowledge Fusion by Merging Weights of Language Models", ICLR 2023) fits one matrix to
several layers: ``W = (sum_i W_i C_i) (sum_i C_i + eps)^-1``, where ``C_i`` is the covariance of the inputs of layer i
on the images of its own model. Here the rows of each ``W_i`` are first scaled to outputs of variance 1, and each model
keeps a scale of its own for each output channel, as its BatchNorm gives it. The error is the part of the variance of
the outputs that the fitted kernel does not explain: about 0 for equal kernels, 1 for a kernel that is of no use.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.sharing import Slot, Use
from ..models.trace import hooked
from .subjects import Subject

__all__ = ["HOPELESS", "JointErrors", "summary"]

_IMAGES = 32
"""Number of training images of a model on which the inputs of its layers are measured."""
_ROWS = 1024
"""Maximum number of inputs (output pixels) of a layer that are kept for each batch of images."""
_WIDEST = 2304
"""Maximum number of inputs of a kernel that is fitted; time and memory grow with its square and cube."""
_RIDGE = 1e-4
"""Ridge penalty of the fit, as a fraction of the mean diagonal element of the summed covariances."""
_BATCH = 8
"""Number of images in a batch."""
_MOST_UNFOLDED = 1 << 25
"""Maximum number of elements of unfolded inputs at a time; of larger inputs fewer images are used, but at least one."""
HOPELESS = 0.5
"""Closed-form error above which sharing a layer between models without a common origin is not worth a training."""


class JointErrors:
    """Closed-form errors of slots (sets of layer weights that can hold one tensor), measured when first asked for.

    Args:
        subjects: the models, by name, with their original weights in the teachers.
        seed: seed of the choice of images.
    """

    def __init__(self, subjects: Mapping[str, Subject], seed: int = 0) -> None:
        self._subjects, self._seed = subjects, seed
        self._covariances: dict[str, dict[str, Tensor]] = {}
        self._known: dict[Slot, float | None] = {}

    def __call__(self, slot: Slot) -> float | None:
        """Return the mean error of a slot over its layers, from 0 to 1; None where it cannot be fitted.

        Layers with channel groups and kernels with more than 2304 inputs are not fitted.
        """
        if slot not in self._known:
            errors = self._errors(slot)
            # Rounded: a resumed search must come to the same decisions.
            self._known[slot] = round(sum(errors) / len(errors), 2) if errors else None
        return self._known[slot]

    @torch.no_grad()
    def _errors(self, slot: Slot) -> list[float]:
        """Return the error of each layer of a slot; empty if one of them cannot be fitted."""
        weights, inputs = [], []
        for use in slot:
            layer = self._layer(use)
            known = self._of(use.model).get(_name(use))
            if known is None:
                return []
            weight = layer.weight.detach().cpu().flatten(1).double()
            variance = ((weight @ known) * weight).sum(1)
            if not bool((variance > 0).all()):
                return []
            weights.append(weight / variance.sqrt()[:, None])
            inputs.append(known)
        total = torch.stack(inputs).sum(0)
        total.diagonal().add_(_RIDGE * total.diagonal().mean())
        wanted = torch.stack([weight @ each for weight, each in zip(weights, inputs, strict=True)]).sum(0)
        joint, failed = torch.linalg.solve_ex(total, wanted.T)
        if failed:
            return []
        return [_unexplained(weight, joint.T, each) for weight, each in zip(weights, inputs, strict=True)]

    def _layer(self, use: Use) -> nn.Conv2d | nn.Linear:
        """Return the original layer that holds a weight."""
        model = self._subjects[use.model].teacher.module.model
        assert isinstance(model, nn.Module)
        layer = model.get_submodule(_name(use))
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        return layer

    @torch.no_grad()
    def _of(self, model: str) -> dict[str, Tensor]:
        """Return layer name -> covariance of the layer's inputs, ``[I, I]`` float64, for layers that are fitted."""
        if model in self._covariances:
            return self._covariances[model]
        subject = self._subjects[model]
        stage = subject.teacher.folded(next(_batches(subject, self._seed)))
        module = stage.model
        assert isinstance(module, nn.Module)
        layers = {module.get_submodule(layer.name): layer.name for layer in subject.layers if not layer.head}
        kept = {layer: name for layer, name in layers.items() if _width(layer) <= _WIDEST}
        sums: dict[str, tuple[int, Tensor, Tensor]] = {}

        def record(layer: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
            """Add up the inputs of one call of a layer; PyTorch calls this function after the layer."""
            rows = _rows(layer, inputs[0])
            count, first, second = sums.get(kept[layer], (0, torch.zeros(()), torch.zeros(())))
            sums[kept[layer]] = count + len(rows), first + rows.sum(0), second + rows.T @ rows

        with hooked(kept, record):
            for batch in _batches(subject, self._seed):
                stage(batch)
        self._covariances[model] = {
            name: second.double() / count - torch.outer(first.double() / count, first.double() / count)
            for name, (count, first, second) in sums.items()
        }
        return self._covariances[model]


def _name(use: Use) -> str:
    """Return the name of the layer that holds a weight."""
    return use.parameter.rpartition(".")[0]


def _width(layer: nn.Module) -> float:
    """Return the number of inputs of a kernel; infinity for a layer that cannot be fitted."""
    if isinstance(layer, nn.Linear):
        return layer.in_features
    if not isinstance(layer, nn.Conv2d) or layer.groups > 1 or isinstance(layer.padding, str):
        return float("inf")
    return layer.weight[0].numel()


def _rows(layer: nn.Module, x: Tensor) -> Tensor:
    """Return inputs of a layer, one row for each output pixel, ``[R, I]`` float32 with at most 1024 rows."""
    if isinstance(layer, nn.Conv2d):
        assert not isinstance(layer.padding, str)
        if layer.kernel_size == (1, 1) and layer.padding == (0, 0):
            down, across = layer.stride
            x = x[:, :, ::down, ::across].permute(0, 2, 3, 1).flatten(0, 2)
        else:
            images = max(1, _MOST_UNFOLDED // (layer.weight[0].numel() * x.shape[2] * x.shape[3]))
            x = F.unfold(x[:images], layer.kernel_size, layer.dilation, layer.padding, layer.stride)
            x = x.transpose(1, 2).flatten(0, 1)
    else:
        x = x.flatten(0, -2)
    if len(x) > _ROWS:
        x = x[torch.linspace(0, len(x) - 1, _ROWS, device=x.device).long()]
    return x.float().cpu()


def _batches(subject: Subject, seed: int) -> Iterator[Tensor]:
    """Yield a random sample of a model's training images, normalised, in small batches."""
    order = torch.randperm(len(subject.train), generator=torch.Generator().manual_seed(seed))[:_IMAGES]
    for part in order.split(_BATCH):
        yield subject.train.batch(part).to(subject.device)


def _unexplained(weight: Tensor, joint: Tensor, inputs: Tensor) -> float:
    """Return the part of a layer's output variance that a joint kernel with a scale for each channel leaves.

    Args:
        weight: kernel of the layer, ``[O, I]``, with outputs of variance 1.
        joint: kernel that stands for it, ``[O, I]``.
        inputs: covariance of the layer's inputs, ``[I, I]``.
    """
    seen = joint @ inputs
    common, own = (seen * weight).sum(1), (seen * joint).sum(1).clamp(min=1e-12)
    return float((1 - common.square() / own).clamp(0, 1).mean())


def summary(errors: Sequence[float | None]) -> str:
    """Return a line on the errors of some slots (sets of layer weights that can hold one tensor), for people."""
    known = sorted(error for error in errors if error is not None)
    if not known:
        return "no layer that can be fitted in closed form"
    hopeless = sum(error > HOPELESS for error in known)
    return (
        f"{len(known)} layers: one kernel for all models leaves {known[len(known) // 2]:.0%} of their outputs"
        f" unexplained (median; {known[0]:.0%} to {known[-1]:.0%}), {hopeless} of them more than half"
    )
