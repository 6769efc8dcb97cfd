"""Main graph of a model as the bundle stores it, with a key of what each of its values computes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Set
from functools import cached_property
from math import prod
from operator import attrgetter

from ...bundles.form_nodes import without_forms
from ...bundles.onnx_wire import Message
from ...bundles.program import port_shape

__all__ = ["MainGraph"]

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""ONNX operators whose multiply-adds are counted where they have a weight."""
_RANDOM = ("Random", "Bernoulli", "Multinomial", "Dropout")
"""Beginnings of the names of ONNX operators that give other values in every run."""
_FLOAT = 1
"""TensorProto.DataType number of float32."""


class MainGraph:
    """Stage ``main`` of one model, with a key for every value that depends on the image.

    Values of equal keys are equal for equal images: they come from the same operators with the same attributes and the
    same weights. Names of values, nodes and inputs do not count.

    Args:
        model: name of the model.
        proto: ModelProto of the stage, with weights outside.
        tensors: initializer name -> tensor id, for the weights.
        input_key: text that is equal for models whose inputs are prepared from a frame in the same way.

    Raises:
        ValueError: the graph does not have exactly one input.
    """

    def __init__(self, model: str, proto: Message, tensors: Mapping[str, str], input_key: str) -> None:
        self.model, self.proto, self.tensors = model, proto, tensors
        # Nodes that compute a weight are no layers of the model.
        self._graph = graph = without_forms(proto).graph
        self._initializers = {tensor.name: tensor for tensor in graph.initializer}
        ports = [port for port in graph.input if port.name not in self._initializers]
        if len(ports) != 1:
            raise ValueError(f"{model}: {len(ports)} inputs, 1 expected")
        self.image = ports[0]
        self.types = {port.name: port for port in (*graph.value_info, *graph.output)}
        """Value name -> ValueInfoProto, for the values whose type is known."""
        self.keys: dict[str, str] = {}
        """Value name -> key, for the image and all values that depend on it."""
        self.nodes: list[Message] = []
        """Nodes whose outputs depend on the image, in the order in which they run."""
        self._set_keys(input_key)

    def _set_keys(self, input_key: str) -> None:
        """Compute the keys of all values of the graph."""
        known = {name: self._weight_key(name) for name in self._initializers}
        self.image_key = self.keys[self.image.name] = _digest("image", self._header(), _type(self.image), input_key)
        for node in self._graph.node:
            attributes = [each.SerializeToString(deterministic=True) for each in _sorted(node.attribute)]
            inputs = [self.keys.get(name) or known.get(name, "") for name in node.input]
            own = f"{self.model} {node.output[0]}" if node.op_type.startswith(_RANDOM) else ""
            key = _digest(node.op_type, node.domain, *attributes, "inputs", *inputs, str(len(node.output)), own)
            depends = any(name in self.keys for name in node.input)
            if depends:
                self.nodes.append(node)
            for index, name in enumerate(node.output):
                if name:
                    (self.keys if depends else known)[name] = _digest(key, str(index))

    def _header(self) -> bytes:
        """Return what a graph's operators depend on outside it: their versions, and functions of the model."""
        header = type(self.proto)()
        header.CopyFrom(self.proto)
        header.ClearField("graph")
        header.ClearField("metadata_props")
        data: bytes = header.SerializeToString(deterministic=True)
        return data

    def _weight_key(self, name: str) -> str:
        """Return the key of an initializer: its tensor id, or a hash of its values if they lie in the graph."""
        if name in self.tensors:
            return self.tensors[name]
        unnamed = type(self._initializers[name])()
        unnamed.CopyFrom(self._initializers[name])
        unnamed.ClearField("name")
        return _digest("constant", unnamed.SerializeToString(deterministic=True))

    @cached_property
    def names(self) -> Mapping[str, str]:
        """Key of what a value computes -> name of the graph's first value with that key."""
        names: dict[str, str] = {}
        for name, key in self.keys.items():
            names.setdefault(key, name)
        return names

    @cached_property
    def value_names(self) -> frozenset[str]:
        """Names of all values of the graph but the image."""
        nodes = (name for node in self.proto.graph.node for name in node.output)
        return frozenset((*nodes, *(tensor.name for tensor in self.proto.graph.initializer)))

    @cached_property
    def works(self) -> Mapping[str, int]:
        """Key of a layer's output -> multiply-adds of the layer for one image; a size that is not known counts as 1."""
        return {
            self.keys[node.output[0]]: self._multiply_adds(node)
            for node in self.nodes
            if node.op_type in _LAYERS and not node.domain and self._kernel(node) is not None
        }

    def work(self, keys: Set[str]) -> int:
        """Return the multiply-adds for one image of the layers whose outputs have one of the given keys."""
        return sum(work for key, work in self.works.items() if key in keys)

    def edge(self, keys: Set[str]) -> frozenset[str]:
        """Return the keys of the values that the rest of the graph reads, if a stem computes those with ``keys``.

        The key of the image is among them if the rest reads the image.
        """
        inside = {*keys, self.image_key}
        read = {port.name for port in self.proto.graph.output}
        for node in self.nodes:
            if not self._made_by(node, keys):
                read.update(node.input)
        return frozenset(self.keys[name] for name in read if self.keys.get(name) in inside)

    def before(self, key: str) -> frozenset[str]:
        """Return the keys of all values that a value is computed from, and the value's own; the image is left out."""
        found: set[str] = {key}
        for node in reversed(self.nodes):
            if self._made_by(node, found):
                found.update(self.keys[name] for name in (*node.output, *node.input) if name in self.keys)
        return frozenset(found - {self.image_key})

    def after(self, keys: Set[str]) -> frozenset[str]:
        """Return the keys of all values that depend on a value whose key is in ``keys``, ``keys`` included."""
        found = set(keys)
        for node in self.nodes:
            if any(self.keys.get(name) in found for name in node.input):
                found.update(self.keys[name] for name in node.output if name)
        return frozenset(found)

    def can_be_passed_on(self, key: str) -> bool:
        """Return whether a value can be kept for each image: float32, the batch first, and all other sizes known."""
        port = self.types.get(self.names[key])
        if port is None or port.type.tensor_type.elem_type != _FLOAT:
            return False
        shape, image = port_shape(port), port_shape(self.image)
        if len(shape) < 2 or any(isinstance(size, str) for size in shape[1:]):
            return False
        return isinstance(shape[0], str) if isinstance(image[0], str) else shape[0] == image[0]

    def _made_by(self, node: Message, keys: Set[str]) -> bool:
        return any(self.keys[name] in keys for name in node.output if name)

    def _kernel(self, node: Message) -> Message | None:
        """Return the initializer of two or more dimensions that a layer multiplies its input with; None if none."""
        held = [self._initializers[name] for name in node.input[:2] if name in self._initializers]
        return held[0] if held and len(held[0].dims) > 1 else None

    def _multiply_adds(self, node: Message) -> int:
        kernel = self._kernel(node)
        assert kernel is not None  # works() asks only about layers with a kernel
        size: int = prod(kernel.dims)
        if node.op_type == "Gemm":
            return size
        value = node.input[0] if node.op_type == "ConvTranspose" else node.output[0]
        shape = port_shape(self.types[value]) if value in self.types else ()
        positions = shape[1:-1] if node.op_type == "MatMul" else shape[2:]
        return size * prod(count for count in positions if isinstance(count, int))


def _sorted(attributes: Iterable[Message]) -> list[Message]:
    return sorted(attributes, key=attrgetter("name"))


def _type(port: Message) -> str:
    """Return the element type and the sizes of a port; sizes that are free count as equal, whatever their names."""
    sizes = ["?" if isinstance(size, str) else size for size in port_shape(port)]
    return f"{port.type.tensor_type.elem_type} {sizes}"


def _digest(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(f"{len(data)}:".encode() + data)
    return digest.hexdigest()
