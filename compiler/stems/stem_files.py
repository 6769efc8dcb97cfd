"""Writing of stems into a bundle: two more ONNX files per model, and the models' entries in the manifest."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

from ...bundles.manifest import FileSpec, Manifest, ModelSpec, Port, Stage, StemSpec
from ...bundles.onnx_wire import Message
from ...bundles.program import port_dtype, port_shape, read_model, split_model, tensors_of
from ...bundles.reader import MANIFEST
from .cut_graph import cut_graphs
from .find_stems import FoundStem, find_stems
from .main_graph import MainGraph
from .try_stem import stem_difference

__all__ = ["add_stems"]

_NO_TENSOR = "0" * 32
"""Stand-in for the id of a weight that the whole graph holds as a constant."""


def add_stems(folder: Path, content: Manifest, step: Callable[[str, str], None]) -> Manifest:
    """Add stems to a bundle: where models of one feed begin with the same layers, the model's parts before and after.

    The files of stage ``main`` stay as they are. Models that hold private copies of their weights get no stem, because
    the parts would hold second copies: those of mode ``constant``, and those of lower precision. Every stem is run on
    images of noise; where the parts give other outputs than the whole, there is no stem.

    Args:
        folder: folder of the bundle, which is whole.
        content: content of the bundle's manifest.
        step: function called with ``stems`` and a line about each stem.

    Returns:
        The content of the manifest that was written; ``content`` if there are no stems.
    """
    models_of: dict[str, set[str]] = defaultdict(set)
    for query in content.queries.values():
        models_of[query.feed].add(query.model)
    # A model that is alone on its feeds has nothing in common with anyone, and need not be read.
    together = {model for models in models_of.values() if len(models) > 1 for model in models}
    graphs = {
        name: graph
        for name, model in content.models.items()
        if name in together
        and model.mode == "bound"
        and model.precision == "fp32"
        and (graph := _main_graph(folder, name, model))
    }
    stems: dict[str, StemSpec] = {}
    files: dict[str, FileSpec] = {}
    for found in find_stems(list(graphs.values()), models_of):
        specs, written = _write(folder, found, [graphs[name] for name in found.members])
        problem = _problem(folder, content, specs)
        if problem is not None:
            step("stems", f"{_listed(found.members)}: no stem, {problem}")
            for name in written:
                (folder / name).unlink()
            continue
        stems |= specs
        files |= written
        step("stems", _describe(content, found, graphs[found.members[0]], specs))
    if not stems:
        return content
    models = {
        name: model.model_copy(update={"stem": stems[name]} if name in stems else {})
        for name, model in content.models.items()
    }
    content = content.model_copy(update={"models": models, "files": {**content.files, **files}})
    (folder / MANIFEST).write_text(content.model_dump_json(indent=1))
    return content


def _main_graph(folder: Path, name: str, model: ModelSpec) -> MainGraph | None:
    """Return the graph of a model's stage ``main``; None if it has several inputs."""
    main = model.stages["main"]
    proto = read_model((folder / main.file).read_bytes())
    return MainGraph(name, proto, tensors_of(proto, main), repr(model.input)) if len(main.inputs) == 1 else None


def _write(folder: Path, found: FoundStem, graphs: list[MainGraph]) -> tuple[dict[str, StemSpec], dict[str, FileSpec]]:
    """Write the files of a stem and of its members' rests; return the manifest's entries of members and files."""
    parts = cut_graphs(found, graphs)
    specs: dict[str, StemSpec] = {}
    files: dict[str, FileSpec] = {}
    for graph in graphs:
        stages = {}
        for stage, proto in (("stem", parts.stem), ("rest", parts.rests[graph.model])):
            # Stages of the model have files of the same form; a model's name has no dot.
            file, data = f"{graph.model}.{stage}.onnx", proto.SerializeToString(deterministic=True)
            (folder / file).write_bytes(data)
            files[file] = FileSpec(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
            # The stem is cut out of the first member's graph, which may name equal weights otherwise.
            stages[stage] = _stage(file, proto, graphs[0].tensors if stage == "stem" else graph.tensors)
        made = stages["stem"]
        digest = hashlib.sha256("\n".join((made.program, *made.weights)).encode()).hexdigest()
        specs[graph.model] = StemSpec(id=digest[:32], stem=made, rest=stages["rest"])
    return specs, files


def _stage(file: str, proto: Message, tensors: Mapping[str, str]) -> Stage:
    """Return the manifest's entry of a part of a model: the stem or the rest.

    Args:
        file: name of the part's file.
        proto: the part's graph.
        tensors: initializer name -> tensor id, for the weights of the graph that the part was cut from. A weight that
            is a constant there has no tensor: the part then names :data:`_NO_TENSOR`, which :func:`_problem` refuses.
    """
    program = split_model(proto)
    ports = [
        tuple(Port(name=port.name, dtype=port_dtype(port), shape=port_shape(port)) for port in group)
        for group in (proto.graph.input, proto.graph.output)
    ]
    weights = tuple(tensors.get(name, _NO_TENSOR) for name in program.weights)
    return Stage(file=file, program=program.id, inputs=ports[0], outputs=ports[1], weights=weights)


def _problem(folder: Path, content: Manifest, specs: Mapping[str, StemSpec]) -> str | None:
    """Return why a stem cannot be used: a model's parts need other tensors than the whole, or give other outputs."""
    for name, spec in specs.items():
        main = content.models[name].stages["main"]
        if not {*spec.stem.weights, *spec.rest.weights} <= {*main.weights}:
            return f"the parts of {name} would need more tensors than the whole"
        if (difference := stem_difference(folder, main, spec)) is not None:
            return f"the parts of {name} differ from the whole: {difference}"
    return None


def _describe(content: Manifest, found: FoundStem, graph: MainGraph, specs: Mapping[str, StemSpec]) -> str:
    """Return a line about a stem: queries, layers, and the share of the models' weights."""
    queries = [name for name, query in content.queries.items() if query.model in found.members]
    layers = len(graph.works.keys() & found.keys)
    held = sum(map(content.bytes_of, set(specs[graph.model].stem.weights)))
    shares = [held / max(1, content.models[name].bytes) for name in found.members]
    low, high = f"{min(shares):.0%}", f"{max(shares):.0%}"
    share = low if low == high else f"{low} to {high}"
    return f"{_listed(queries)} share a stem: {layers} layers, {share} of their models' weights"


def _listed(names: list[str] | tuple[str, ...]) -> str:
    return ", ".join(names)
