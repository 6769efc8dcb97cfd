"""Fingerprints of PyTorch modules: equal for two modules that export to one graph and differ in weights alone.

PyTorch's exporter traces a module on tensors without values. What it traces depends on the module's classes, its
attributes and the shapes of its inputs, not on the values of parameters and float buffers in the state dict. A
fingerprint therefore holds every object that can be reached from a module: classes and functions by identity or code,
numbers, texts and containers by value, weights by type and shape, all other tensors by value, and which attributes are
one object. What cannot be compared this way has no fingerprint, and its module is exported on its own.
"""

from __future__ import annotations

import copyreg
import enum
import functools
import hashlib
import pathlib
import re
import types
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..heads import StageModule

__all__ = ["Fingerprint", "fingerprint"]

_COUNTER = "num_batches_tracked"
"""Buffer of normalisation layers that counts training steps. Inference does not read it."""
_SOURCES = frozenset({"_name_or_path", "name_or_path"})
"""Attributes of Hugging Face's configurations that name the folder of the weights. No ``forward`` reads them."""
_SKIPPED = frozenset({"__annotations__", "__dict__", "__doc__", "__module__", "__weakref__", "_abc_impl"})
"""Attributes of classes that no export to ONNX depends on."""
_PLAIN = (type(None), bool, int, float, complex, str, bytes, range, type(Ellipsis))
"""Types of values that a module's fingerprint compares by type and printed text."""
_UNIQUE = (
    enum.Enum,
    torch.dtype,
    torch.layout,
    torch.memory_format,
    types.BuiltinFunctionType,
    types.ModuleType,
    types.WrapperDescriptorType,
    types.MethodDescriptorType,
    functools._lru_cache_wrapper,
)
"""Types of values that a module's fingerprint compares by identity: only one and the same object is equal."""
_VALUES = (tuple, torch.Size)
"""Types of immutable containers, which a module's fingerprint compares by value and never by identity."""
_CONTAINERS = (list, tuple, dict, OrderedDict, torch.Size)
"""Types of containers that a module's fingerprint compares item by item, in order."""


@dataclass(frozen=True)
class Fingerprint:
    """Everything that the export of a stage depends on, without the values of its weights."""

    tokens: tuple[Any, ...]
    weights: Mapping[str, Tensor] = field(compare=False, repr=False)
    """Name of each weight, as in the stage module's ``named_parameters`` and ``named_buffers`` -> tensor. Names of
    tensors that are compared by value are left out."""
    alive: tuple[Any, ...] = field(compare=False, repr=False)
    """Classes and functions that tokens refer to by ``id``; kept so that no other object gets the same id."""


class _UnknownError(Exception):
    """Error about an object that a module's fingerprint cannot compare, so that the module has no fingerprint."""


def fingerprint(stage: StageModule) -> Fingerprint | None:
    """Return the fingerprint of a stage; None if an object in the stage's module cannot be compared.

    Args:
        stage: stage whose module is in eval mode.
    """
    walk = _Walk()
    try:
        walk.visit([stage.outputs, {name: dict(axes) for name, axes in stage.free.items()}, torch.get_default_dtype()])
        for name, value in stage.inputs.items():
            walk.add("input", name, str(value.dtype), tuple(value.shape), value.stride(), str(value.device))
        walk.visit(stage.module)
    except (_UnknownError, RecursionError):
        return None
    weights: dict[str, Tensor] = {}
    for named in (stage.module.named_parameters, stage.module.named_buffers):
        weights |= {name: value for name, value in named(remove_duplicate=False) if walk.is_weight(value)}
    return Fingerprint(tuple(walk.tokens), weights, tuple(walk.alive))


class _Walk:
    """Depth-first walk over all objects that can be reached from a module, which makes the module's fingerprint."""

    def __init__(self) -> None:
        self.tokens: list[Any] = []
        self.alive: list[Any] = []
        self._seen: dict[int, int] = {}
        self._held: list[Any] = []
        self._weights: dict[int, bool] = {}
        self._storages: dict[int, int] = {}

    def add(self, *tokens: Any) -> None:
        """Append tokens (texts, numbers, and tuples of these) to the fingerprint."""
        self.tokens.extend(tokens)

    def is_weight(self, value: Tensor) -> bool:
        """Return whether the walk met a tensor as a weight, whose values were not compared."""
        return self._weights.get(id(value), False)

    def visit(self, value: Any) -> None:
        """Add an object, and all objects that can be reached from it, to the fingerprint.

        Raises:
            _UnknownError: an object cannot be compared.
        """
        kind = type(value)
        if kind in _PLAIN:
            self.add(kind.__name__, repr(value))
        elif isinstance(value, Tensor):
            self._tensor(value, weight=False)
        elif isinstance(value, _UNIQUE):
            self._same(value)
        elif kind in _VALUES:
            # Whether two equal tuples are one object is no property of a module: exporting may have copied one.
            self._held.append(value)
            self._compound(value, kind)
        elif self._is_new(value):
            self._compound(value, kind)

    def _compound(self, value: Any, kind: type) -> None:
        """Add an object that has parts, and that the walk meets for the first time, to the fingerprint."""
        if isinstance(value, nn.Module):
            self._module(value)
        elif isinstance(value, type):
            self._class(value)
        elif kind in _CONTAINERS:
            self.add(kind.__name__, len(value))
            for each in value.items() if isinstance(value, dict) else value:
                for part in each if isinstance(value, dict) else (each,):
                    self.visit(part)
        elif kind in (set, frozenset) and all(type(each) in _PLAIN for each in value):
            self.add(kind.__name__, tuple(sorted((type(each).__name__, repr(each)) for each in value)))
        elif kind is types.FunctionType:
            self._function(value)
        elif kind is types.MethodType:
            self.add("method")
            self.visit(value.__func__)
            self.visit(value.__self__)
        elif kind is functools.partial:
            self.add("partial")
            self.visit([value.func, value.args, value.keywords, vars(value)])
        elif kind is np.ndarray and value.dtype.kind in "biufc":
            self.add("array", value.dtype.str, value.shape, hashlib.sha256(value.tobytes()).hexdigest())
        elif isinstance(value, np.generic | np.dtype | torch.device | pathlib.PurePath | re.Pattern | slice):
            self.add(f"{kind.__module__}.{kind.__qualname__}", repr(value))
        else:
            self._object(value, kind)

    def _is_new(self, value: Any) -> bool:
        """Return whether the walk meets an object for the first time; otherwise add its number to the fingerprint."""
        number = self._seen.get(id(value))
        if number is not None:
            self.add("again", number)
            return False
        self._seen[id(value)] = len(self._seen)
        # Keep temporary objects, so that no later one gets the same id.
        self._held.append(value)
        return True

    def _same(self, value: Any) -> None:
        """Add an object that equals only itself to the fingerprint, by its ``id``."""
        self.alive.append(value)
        self.add("same", id(value))

    def _module(self, module: nn.Module) -> None:
        """Add a module to the fingerprint: its class, and its attributes with parameters and buffers among them."""
        if isinstance(module, torch.jit.ScriptModule):
            raise _UnknownError
        self.add("module")
        self.visit(type(module))
        for name, value in vars(module).items():
            self.add(name)
            if name == "_parameters":
                for each, parameter in value.items():
                    self.add(each)
                    self._maybe(parameter, weight=True)
            elif name == "_buffers":
                for each, buffer in value.items():
                    self.add(each)
                    weight = buffer is not None and each not in module._non_persistent_buffers_set
                    counts = each == _COUNTER and isinstance(module, nn.modules.batchnorm._NormBase)
                    self._maybe(buffer, weight=weight and (counts or buffer.is_floating_point()))
            else:
                self.visit(value)

    def _maybe(self, value: Tensor | None, *, weight: bool) -> None:
        """Add a parameter or buffer of a module, which may be None, to the fingerprint."""
        if value is None:
            self.add("none")
        else:
            self._tensor(value, weight=weight)

    def _tensor(self, value: Tensor, *, weight: bool) -> None:
        """Add a tensor to the fingerprint: type, shape and place in storage, and the values unless it is a weight.

        Raises:
            _UnknownError: the tensor is of a special kind; or one attribute holds it as a weight, and another as a
                tensor whose values the exporter would write into the graph.
        """
        if type(value) not in (Tensor, nn.Parameter) or value.layout != torch.strided or value.device.type != "cpu":
            raise _UnknownError
        if value.is_quantized or value.is_complex() or value.is_conj() or value.is_neg():
            raise _UnknownError
        if self._weights.setdefault(id(value), weight) != weight:
            raise _UnknownError
        if not self._is_new(value):
            return
        storage = value.untyped_storage()
        place = self._storages.setdefault(storage.data_ptr(), len(self._storages)) if storage.nbytes() else -1
        self.add("tensor", type(value).__name__, str(value.dtype), tuple(value.shape), value.stride())
        self.add(value.requires_grad, place, value.storage_offset())
        if not weight:
            data = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
            self.add(hashlib.sha256(data.tobytes()).hexdigest())
        if vars(value):
            self.visit(vars(value))

    def _class(self, kind: type) -> None:
        """Add a class to the fingerprint: identity, and data of it and its bases, which a factory may have changed."""
        self._same(kind)
        for each in kind.__mro__:
            if each.__module__.split(".")[0] in ("torch", "builtins", "typing", "abc", "enum"):
                continue
            for name, value in vars(each).items():
                if name in _SKIPPED:
                    continue
                self.add(name)
                if type(value) in (*_PLAIN, *_CONTAINERS, set, frozenset) or isinstance(value, Tensor):
                    self.visit(value)
                else:
                    self._same(value)

    def _function(self, value: types.FunctionType) -> None:
        """Add a function to the fingerprint: code, globals by identity, defaults, and the variables it closes over."""
        self.add("function", value.__code__)
        self._same(value.__globals__)
        cells = [each.cell_contents for each in value.__closure__ or ()]
        self.visit([value.__defaults__, value.__kwdefaults__, cells, vars(value)])

    def _object(self, value: Any, kind: type) -> None:
        """Add an object to the fingerprint whose class keeps all state in attributes and items.

        Raises:
            _UnknownError: the object may have state that Python does not see, or says itself how it is copied.
        """
        plain = all(getattr(kind, name) is getattr(object, name) for name in ("__reduce__", "__reduce_ex__"))
        own = getattr(object, "__getstate__", None)  # from Python 3.11
        if not plain or getattr(kind, "__getstate__", own) is not own:
            raise _UnknownError
        try:
            made, given, *rest = value.__reduce_ex__(2)
        except TypeError as error:
            raise _UnknownError from error
        if made is not copyreg.__newobj__:  # type: ignore[attr-defined]
            raise _UnknownError
        state, items, pairs = [*rest, None, None, None][:3]
        if isinstance(state, dict) and kind.__module__.split(".")[0] == "transformers":
            state = {name: each for name, each in state.items() if name not in _SOURCES}
        self.add("object")
        self.visit([*given, state, list(items or ()), list(pairs or ())])
