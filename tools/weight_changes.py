"""Store retrained weights as changes of public weights, small enough for a repository.

The weight of a convolution or linear layer is stored as a rounded change, as in a delta
(:mod:`gemel.bundles.rounded_changes`). Other tensors are stored unchanged, and a tensor that several layers share is
stored once. Changes are rounded, so accuracies must be measured on the weights that :func:`apply` returns. A delta
cannot be used here: it is about compiled bundles, and this file makes weights of PyTorch models.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from gemel.bundles.rounded_changes import add_change, round_change

__all__ = ["apply", "pack"]

State = Mapping[str, Tensor]


def pack(
    before: Mapping[str, State], after: Mapping[str, State], shared: Iterable[Sequence[tuple[str, str]]], path: Path
) -> None:
    """Write the changes from original to merged weights to a file, as 8-bit differences.

    Args:
        before: model -> state dict with the original weights.
        after: model -> state dict with the merged weights.
        shared: groups of (model, name in the model's state dict) whose weights hold one tensor.
        path: file to write.
    """
    slots = [sorted(slot) for slot in shared]
    repeated = {use for slot in slots for use in slot[1:]}
    tensors: dict[str, Tensor] = {}
    for model, state in after.items():
        for name, value in state.items():
            old = before[model][name]
            if (model, name) in repeated or torch.equal(value, old):
                continue
            if value.dtype == torch.float32 and value.ndim >= 2:
                steps, scale = round_change(old.numpy(), value.numpy())
                tensors[f"{model}/{name}/steps"] = torch.from_numpy(steps)
                tensors[f"{model}/{name}/scale"] = torch.from_numpy(scale)
            else:
                tensors[f"{model}/{name}"] = value.contiguous()
    save_file(tensors, path, {"shared": json.dumps(slots)})


def apply(before: Mapping[str, State], path: Path) -> dict[str, dict[str, Tensor]]:
    """Return the merged weights of every changed model, by model: its original weights with stored changes applied.

    Weights that are shared are equal bit for bit.

    Args:
        before: model -> state dict with the original weights.
        path: file that :func:`pack` wrote.
    """
    after: dict[str, dict[str, Tensor]] = {}

    def changed(model: str) -> dict[str, Tensor]:
        return after.setdefault(model, dict(before[model]))

    with safe_open(path, "pt") as file:
        for key in file.keys():  # noqa: SIM118 - safe_open gives no mapping
            model, name, kind = (*key.split("/"), "")[:3]
            if kind == "steps":
                steps, scale = file.get_tensor(key), file.get_tensor(f"{model}/{name}/scale")
                stretched = scale.view(-1, *[1] * (steps.ndim - 1))
                made = add_change(before[model][name].numpy(), steps.numpy(), stretched.numpy())
                changed(model)[name] = torch.from_numpy(made)
            elif not kind:
                changed(model)[name] = file.get_tensor(key)
        slots = json.loads(file.metadata()["shared"])
    for (model, name), *others in slots:
        for other, parameter in others:
            changed(other)[parameter] = changed(model)[name].clone()
    return after
