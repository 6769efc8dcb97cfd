"""Names for the outputs of a PyTorch module: the tensors in whatever its ``forward`` returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ...errors import ModelError

__all__ = ["PickedOutputs", "flatten_outputs", "pick_outputs"]

ONLY_OUTPUT = "output"
"""Name given to the output of a module that returns one tensor, which has no name of its own."""
_DEEPEST = 32
"""Maximum depth of nested containers to search for tensors. A container that holds itself would have no end."""


def flatten_outputs(returned: Any) -> dict[str, Tensor]:
    """Return all tensors in a module's result, in order, by dotted name.

    The names are the keys of mappings (also Hugging Face's ModelOutput), the fields of dataclasses and named tuples,
    and the positions in other sequences: ``{"out": [a, b]}`` gives ``out.0`` and ``out.1``. A tensor alone is called
    ``output``. Everything that is no tensor (None, numbers, text) is left out.

    >>> list(flatten_outputs({"logits": Tensor(1), "hidden": [Tensor(1), (Tensor(1), None)], "loss": None}))
    ['logits', 'hidden.0', 'hidden.1.0']
    """
    return dict(_leaves(returned, "", 0))


def pick_outputs(names: Sequence[str], asked: Sequence[str] | None, where: str) -> tuple[str, ...]:
    """Return the names of the outputs that a workload asks for, in the workload's order.

    Args:
        names: names of all outputs of the model.
        asked: ``model.outputs`` of the workload: names, or positions from 0; None asks for all.
        where: type of the model, for errors.

    Raises:
        ModelError: an output does not exist or is asked for twice.
    """
    if asked is None:
        return tuple(names)
    picked: list[str] = []
    for each in asked:
        if each in names:
            name = each
        elif each.isdecimal() and int(each) < len(names):
            name = names[int(each)]
        else:
            raise ModelError(f"{where}: model.outputs: there is no output {each!r}; outputs are {', '.join(names)}")
        if name in picked:
            raise ModelError(f"{where}: model.outputs: {each!r} asks for output {name} a second time")
        picked.append(name)
    return tuple(picked)


class PickedOutputs(nn.Module):
    """Stage module that runs a whole model and returns only some of its outputs.

    Layers that reach no picked output are not exported.

    Args:
        model: whole model; the attribute ``model`` holds it, after which exported weights are named.
        names: names of the outputs, as :func:`flatten_outputs` gives them.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.names = tuple(names)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        outputs = flatten_outputs(self.model(image))
        return tuple(outputs[name] for name in self.names)


def _leaves(value: Any, name: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    """Yield all tensors in a module's result with their dotted names.

    Args:
        value: the result, or a value nested in it.
        name: dotted name of the value; empty for the whole result.
        depth: number of containers around the value.
    """
    if isinstance(value, Tensor):
        yield name or ONLY_OUTPUT, value
        return
    for key, part in _parts(value) if depth < _DEEPEST else ():
        yield from _leaves(part, f"{name}.{key}" if name else key, depth + 1)


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the items of a mapping, sequence or dataclass with their names; nothing for any other value."""
    if isinstance(value, Mapping):
        yield from ((str(key), part) for key, part in value.items())
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        yield from zip(value._fields, value, strict=True)
    elif isinstance(value, list | tuple):
        yield from ((str(index), part) for index, part in enumerate(value))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
