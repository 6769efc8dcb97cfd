"""Construction of PyTorch models from a factory, its arguments and a file of trained weights."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ...errors import ModelError, first_line
from ..document.paths import locate
from ..document.schema import Model
from .identity import PRETRAINED_FOLDER

__all__ = ["build_model", "read_state"]

_FORMATS = (".safetensors", ".pt", ".pth", ".th", ".weights")
"""Suffixes of the files that the weights of a factory's model can be read from."""


def build_model(model: Model, root: Path, query: str) -> nn.Module:
    """Call a model's factory, load the weights, and return the module in eval mode.

    Args:
        model: model in the workload that has a factory.
        root: folder that relative paths start from.
        query: name of the query, for errors and warnings.

    Raises:
        ModelError: the factory cannot be imported or called, or the weights are missing or do not fit.
    """
    if model.factory is None:
        raise ModelError(f"query {query}: model.factory is not set")
    factory = _import(model.factory, root, query)
    weights = locate(model.weights, root, f"query {query}: weights") if model.weights else None
    args = _local_folder(model.args, root, query)
    try:
        module = factory(**_without_downloads(factory, args, weights is not None))
    except Exception as error:
        opens = f"; {model.factory}.from_pretrained opens a folder" if hasattr(factory, "from_pretrained") else ""
        what = f"factory {model.factory}({model.args}): {first_line(error)}{opens}"
        raise ModelError(f"query {query}: {what}") from error
    if not isinstance(module, nn.Module):
        raise ModelError(f"query {query}: factory {model.factory} returned {type(module).__name__}, not an nn.Module")
    if weights is None:
        if PRETRAINED_FOLDER not in args:  # with it, the factory loads trained weights itself
            warnings.warn(f"query {query}: no weights given; the model is as {model.factory} makes it", stacklevel=2)
    elif weights.suffix == ".weights":
        from ..zoo.darknet import load_darknet

        load_darknet(module, weights)
    else:
        _load(module, read_state(weights), weights, query)
    return _in_float32(module).eval()


def read_state(path: Path) -> dict[str, Tensor]:
    """Load a state dict from a ``.safetensors`` file, or from a ``.pt``, ``.pth`` or ``.th`` file without code.

    Checkpoints that hold the state dict under ``state_dict`` or ``model``, or with names that start with ``module.``,
    are unwrapped.

    Raises:
        ModelError: the file has another format, is damaged, or would run code when it is unpickled.
    """
    if path.suffix not in _FORMATS:
        raise ModelError(f"{path}: weights must be one of {', '.join(_FORMATS)}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, EOFError, RuntimeError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read as weights: {first_line(error)}") from error
    except Exception as error:  # pickle.UnpicklingError, and anything that a hostile file can provoke
        raise ModelError(f"{path}: {_refusal(error, path.name)}") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ModelError(f"{path}: holds no state dict (a mapping of names to tensors)")
    state = dict(content)
    if state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state


def _refusal(error: Exception, name: str) -> str:
    """Return the reason why PyTorch refuses a file of weights, on one line.

    PyTorch's own message is a page with escape codes, and advises to let the file run code.

    Args:
        error: PyTorch's error.
        name: name of the file of weights.
    """
    text = str(error)
    if not any(word in text for word in ("GLOBAL", "Unsupported global", "Unsupported class")):
        return "cannot be read as weights: damaged, or not written by torch.save"
    found = re.search(r"(?:GLOBAL|class) ([\w.]+\.\w+)", text)
    what = f" ({found[1]})" if found else ""
    return (
        f"holds more than tensors{what}, and loading that would run code; save the tensors alone, where the file was"
        f" made: torch.save(model.state_dict(), {name!r})"
    )


def _import(reference: str, root: Path, query: str) -> Callable[..., Any]:
    """Import the factory of a model, which a workload names as ``module:name``.

    Raises:
        ModelError: the factory cannot be imported or is not callable.
    """
    name, _, attribute = reference.partition(":")
    if str(root) not in sys.path:
        # Find modules beside the workload file too, but prefer installed ones.
        sys.path.append(str(root))
    try:
        found: Any = importlib.import_module(name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:  # a module may raise anything while it is imported
        missing = isinstance(error, AttributeError)
        reason = f"module {name} has no {attribute}" if missing else first_line(error)
        raise ModelError(f"query {query}: factory {reference}: {reason}") from error
    if not callable(found):
        raise ModelError(f"query {query}: factory {reference} is not callable")
    return found  # type: ignore[no-any-return]


def _local_folder(args: Mapping[str, Any], root: Path, query: str) -> dict[str, Any]:
    """Return a factory's arguments with the folder of ``from_pretrained`` as an absolute path.

    Args:
        args: arguments in the workload.
        root: folder that relative paths start from.
        query: name of the query, for errors.

    Raises:
        ModelError: the argument is written as a path, and there is no such folder.
    """
    name = args.get(PRETRAINED_FOLDER)
    if not isinstance(name, str):
        return dict(args)
    folder = root / Path(name).expanduser()
    if folder.is_dir():
        return {**args, PRETRAINED_FOLDER: str(folder.resolve())}
    if name.startswith((".", "/", "~")):
        raise ModelError(f"query {query}: {PRETRAINED_FOLDER}: {folder}: no such folder")
    return dict(args)


def _in_float32(module: nn.Module) -> nn.Module:
    """Convert a PyTorch module that holds 16-bit weights to float32, in place, because frames and ONNX graphs are
    float32.

    Hugging Face loads a model in the type that it was saved in.
    """
    values = (*module.parameters(), *module.buffers())
    return module.float() if any(value.dtype in (torch.float16, torch.bfloat16) for value in values) else module


def _without_downloads(factory: Callable[..., Any], args: Mapping[str, Any], has_weights: bool) -> dict[str, Any]:
    """Return a factory's arguments with torchvision's download of a pretrained backbone turned off.

    The download is useless if weights are loaded afterwards. Factories without the option get their arguments as they
    are.

    Args:
        factory: factory of a model.
        args: arguments in the workload, which take precedence.
        has_weights: whether weights are loaded afterwards.
    """
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return dict(args)
    if has_weights and "weights_backbone" in parameters:
        return {"weights_backbone": None, **args}
    return dict(args)


def _load(module: nn.Module, state: Mapping[str, Tensor], path: Path, query: str) -> None:
    """Load a state dict from a file into a PyTorch module, in place.

    Raises:
        ModelError: tensors of the file are missing, unexpected or of another shape; the message names the first three.
    """
    own = module.state_dict()
    # BatchNorm's counters of training steps are no weights, and older files lack them.
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    wrong = [
        f"{name} {list(state[name].shape)} (model: {list(own[name].shape)})"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    problems = [
        f"{len(names)} {what}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", wrong))
        if names
    ]
    if problems:
        raise ModelError(f"query {query}: {path} does not fit {type(module).__name__}: {'; '.join(problems)}")
    # Files of plain tensors carry no version. State that fits the present names has the present version, which a
    # module may ask for, as torchvision's MNASNet does.
    versioned = OrderedDict(state)
    versioned._metadata = getattr(state, "_metadata", own._metadata)  # type: ignore[attr-defined]
    module.load_state_dict(versioned, strict=False)
