"""Modes of models on a CPU: which run on shared weights and which on private copies, under a memory setting."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from ...bundles.reader import Bundle
from ..ort.baked import Baked, PrivateCopy
from ..ort.private_copies import choose_private_copies

__all__ = ["SessionMode", "decide_modes", "own_graph", "own_key", "private_bytes_of"]

SessionMode = Literal["bound", "constant", "packed", "openvino"]
"""Mode in which a model runs.

``bound``: the model's weights lie in the arena, are shared with other models, and are swapped. ``constant``, or
``packed`` for int8 models: the model's sessions hold a private copy of its weights. ``openvino``: programs of OpenVINO
hold a private copy (backend ``auto-cpu``).
"""


def decide_modes(
    bundle: Bundle, baked: Baked, offers: Mapping[str, PrivateCopy], memory: str | int
) -> tuple[Mapping[str, SessionMode], int]:
    """Return the mode in which each model runs, and the bytes that the memory setting allows for weights.

    Raises:
        InputError: the memory setting is too small.
    """
    modes: dict[str, SessionMode] = {
        # The manifest's mode does not count for int8 models: the faster mode depends on this CPU.
        name: "bound" if model.precision == "int8" else model.mode
        for name, model in bundle.manifest.models.items()
    }
    segments_of = {name: baked.needs(name) for name, mode in modes.items() if mode == "bound"}
    sizes = {segment: baked.sizes[segment] for segments in segments_of.values() for segment in segments}
    private = sum(private_bytes_of(baked, offers, modes).values())
    packed, allowed = choose_private_copies(memory, sizes, segments_of, offers, private)
    for name in packed:
        modes[name] = offers[name].mode
    return modes, allowed


def private_bytes_of(
    baked: Baked, offers: Mapping[str, PrivateCopy], modes: Mapping[str, SessionMode]
) -> dict[str, int]:
    """Return key of a graph -> bytes of the private copy of weights in its session, for models that are not bound."""
    copies = {}
    for name, mode in modes.items():
        for stage, made in baked.models[name].items() if mode != "bound" else ():
            weights = sum(map(baked.bytes_of, set(made.weights)))
            size = weights if mode == "constant" else offers[name].copies[stage]
            copies[own_key(baked, name, stage, mode)] = size
    return copies


def own_graph(baked: Baked, model: str, stage: str, mode: SessionMode) -> Path:
    """Return the file of the stage's graph that has the weights inside."""
    return baked.constant(model, stage) if mode == "constant" else baked.packed(model, stage)


def own_key(baked: Baked, model: str, stage: str, mode: SessionMode) -> str:
    """Return a key that is equal for graphs with weights inside that compute the same."""
    if mode == "openvino":
        return f"{mode} {model} {stage}"
    path, made = own_graph(baked, model, stage, mode), baked.models[model][stage]
    # The file of a constant graph says where its weights lie in the blob, which differs between bundles.
    return f"{made.program} {' '.join(made.weights)}" if mode == "constant" else baked.files[path.name].sha256
