"""Cut of a model's main graph in two: the stem, from the image on, and the rest, from the stem's outputs on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from ...bundles.onnx_wire import Message
from .find_stems import FoundStem
from .main_graph import MainGraph

__all__ = ["StemGraphs", "cut_graphs"]


@dataclass(frozen=True)
class StemGraphs:
    """ModelProtos of a stem, and of the rest of every model that has the stem."""

    stem: Message
    rests: Mapping[str, Message]
    """Model -> rest of the model's main graph. Its inputs have the names of the stem's input and outputs."""


def cut_graphs(found: FoundStem, graphs: Sequence[MainGraph]) -> StemGraphs:
    """Cut the main graphs of the models that have a stem in common.

    Args:
        found: the stem.
        graphs: main graphs of the stem's members.
    """
    first = graphs[0]
    taken = frozenset().union(*(graph.value_names for graph in graphs))
    image = next(_fresh("image", taken))
    names = dict(zip(found.outputs, _fresh("stem", taken), strict=False))
    ports = {key: _port(first.types[first.names[key]], name, first.image) for key, name in names.items()}
    ports[first.image_key] = _port(first.image, image, first.image)
    stem_outputs = {first.names[key]: ports[key] for key in found.outputs}
    stem = _extract(first.proto, {first.image.name: ports[first.image_key]}, stem_outputs)
    rests = {}
    for graph in graphs:
        inputs = {name: ports[key] for name, key in graph.keys.items() if key in ports}
        rests[graph.model] = _extract(graph.proto, inputs, {port.name: port for port in graph.proto.graph.output})
    return StemGraphs(stem, rests)


def _fresh(prefix: str, taken: frozenset[str]) -> Iterator[str]:
    """Yield names for values of a graph that begin with ``prefix`` and are not taken."""
    return (name for name in (f"{prefix}{index or ''}" for index in count()) if name not in taken)


def _port(value: Message, name: str, image: Message) -> Message:
    """Return a value's type as a port with another name. A free batch has the name that it has at the image."""
    port = type(value)()
    port.CopyFrom(value)
    port.name = name
    batch = image.type.tensor_type.shape.dim[0]
    if batch.HasField("dim_param"):
        port.type.tensor_type.shape.dim[0].CopyFrom(batch)
    return port


def _extract(proto: Message, inputs: Mapping[str, Message], outputs: Mapping[str, Message]) -> Message:
    """Return the part of a graph that computes some values from others, with the initializers that it reads.

    Args:
        proto: ModelProto of the whole graph, which is not changed.
        inputs: value name -> port of the new graph through which the value comes in. Ports that nothing reads are left
            out, and several values may come through one port.
        outputs: value name -> port of the new graph through which the value goes out.
    """
    wanted = {name for name in outputs if name not in inputs}
    nodes: list[Message] = []
    read = {name for name in outputs if name in inputs}
    for node in reversed(proto.graph.node):
        if wanted.intersection(node.output):
            nodes.append(node)
            read.update(name for name in node.input if name in inputs)
            wanted.update(name for name in node.input if name and name not in inputs)
    made = type(proto)()
    made.CopyFrom(proto)
    graph = made.graph
    for field in ("node", "initializer", "input", "output", "value_info", "metadata_props"):
        graph.ClearField(field)
    graph.input.extend({port.name: port for name, port in inputs.items() if name in read}.values())
    graph.output.extend(outputs.values())
    graph.initializer.extend(tensor for tensor in proto.graph.initializer if tensor.name in wanted)
    renamed = {name: port.name for name, port in (*outputs.items(), *inputs.items())}
    for node in reversed(nodes):
        copy = graph.node.add()
        copy.CopyFrom(node)
        _rename(copy.input, renamed)
        _rename(copy.output, renamed)
    for name, port in outputs.items():
        if name in inputs:
            graph.node.add(op_type="Identity", input=[inputs[name].name], output=[port.name])
    return made


def _rename(values: Message, names: Mapping[str, str]) -> None:
    renamed: Iterable[str] = [names.get(value, value) for value in values]
    del values[:]
    values.extend(renamed)
