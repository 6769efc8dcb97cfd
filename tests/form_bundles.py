"""A workload as a merge leaves it, whose models keep some kernels as codes, perhaps beside a common base."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from helpers import query, save, write_video
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tiny_models import tiny

from gemel.bundles.blob import tensor_id
from gemel.bundles.codes import BASE_BITS, Bits, pack_codes, restore
from gemel.workload import load_workload
from gemel.workload.document.schema import Workload

__all__ = ["FORMS", "FORMS_FILE", "WIDTH", "Kept", "code", "form_workload", "kept_state", "write_forms"]

FORMS_FILE = "forms-test.safetensors"
WIDTH = 24
"""Channels of the first layers: no multiple of the 16 that ONNX Runtime interleaves on some CPUs."""


class Kept(NamedTuple):
    """How a parameter is kept."""

    bits: Bits
    beside: bool
    """Whether the codes are added to a base, which all models have in common."""
    coded: bool = False
    """Whether that base is kept as codes, too."""


FORMS: Mapping[str, Mapping[str, Kept]] = {
    "a": {"stem.weight": Kept(1, True, True), "pointwise.weight": Kept(1, True), "head.weight": Kept(4, False)},
    "b": {"stem.weight": Kept(2, True, True), "pointwise.weight": Kept(2, True), "depthwise.weight": Kept(8, False)},
}
"""Model -> parameter of a TinyNet -> how it is kept."""
_BASE_INDEX = 100
"""Number in the file of the forms from which the bases in codes are counted."""


def code(array: NDArray[np.float32], base: NDArray[np.float32] | None, bits: Bits) -> tuple[Any, Any, Any]:
    """Return packed codes and scales for an array, and what they restore."""
    rest = array if base is None else array - base
    rows = rest.reshape(len(rest), -1)
    largest = max(1, 2 ** (bits - 1) - 1)
    scale = (np.abs(rows).max(1) / largest + 1e-3).astype(np.float32)
    codes = np.where(rows < 0, -1, 1) if bits == 1 else np.rint(rows / scale[:, None]).astype(int)
    packed, made = pack_codes(codes, bits), np.empty(array.shape, np.float32)
    restore(made, packed, scale, bits, base=base)
    return packed, scale, made


def kept_state(
    states: Mapping[str, Mapping[str, NDArray[np.float32]]], forms: Mapping[str, Mapping[str, Kept]], seed: int = 0
) -> tuple[dict[str, dict[str, NDArray[np.float32]]], dict[str, NDArray[Any]], list[dict[str, Any]]]:
    """Return weights that can be kept as codes, the tensors of the file of the forms, and the entries of merge.json.

    Args:
        states: model -> parameter -> array.
        forms: model -> parameter -> how it is kept.
        seed: seed of the bases.
    """
    tensors: dict[str, NDArray[Any]] = {}
    layers: list[dict[str, Any]] = []
    made = {model: dict(state) for model, state in states.items()}
    bases: dict[str, NDArray[np.float32]] = {}
    base_indices: dict[str, int] = {}
    for model, kept in forms.items():
        for parameter, (bits, beside, coded) in kept.items():
            array, index, base, name = made[model][parameter], len(layers), None, None
            if beside:
                noise = np.random.default_rng(seed).standard_normal(array.shape).astype(np.float32)
                base = bases.get(parameter, array + np.float32(0.1) * noise)
                if coded and parameter not in bases:
                    base_index = base_indices[parameter] = _BASE_INDEX + len(base_indices)
                    packed, scale, base = code(base, None, BASE_BITS)
                    tensors |= {f"{base_index}.codes": packed, f"{base_index}.scale": scale}
                bases[parameter] = base
                if not coded:
                    tensors[name := f"base.{tensor_id(base)}"] = base
            codes, scale, made[model][parameter] = code(array, base, bits)
            tensors |= {f"{index}.codes": codes, f"{index}.scale": scale}
            layers.append(
                {
                    "model": model,
                    "parameter": parameter,
                    "index": index,
                    "shape": list(array.shape),
                    "kind": "coded" if base is None else "difference",
                    "bits": bits,
                    "base": name,
                    "base_index": base_indices.get(parameter) if coded else None,
                }
            )
    return made, tensors, layers


def write_forms(folder: Path, models: tuple[str, ...], tensors: Mapping[str, Any], layers: list[Any]) -> None:
    """Write merge.json and the file of the forms, as ``gemel merge`` does."""
    entry = {"original": 0.8, "reached": 0.78, "relative": 0.975, "target": 0.95}
    report = {
        "strategy": "together",
        "seed": 0,
        **dict.fromkeys(("original_bytes", "merged_bytes", "layer_bytes"), 10000),
        **dict.fromkeys(("saving", "layer_saving", "potential"), 0.5),
        "finished": True,
        "queries": {name: {"model": name, **entry} for name in models},
        "trials": [],
        "shared": [],
        "forms": {"file": FORMS_FILE, "layers": layers},
    }
    save_file(dict(tensors), folder / FORMS_FILE)
    (folder / "merge.json").write_text(json.dumps(report))


def form_workload(folder: Path, forms: Mapping[str, Mapping[str, Kept]] = FORMS, seed: int = 0) -> Workload:
    """Write TinyNets that keep kernels as codes, with merge.json and a video, and return their workload.

    Args:
        folder: folder for the files.
        forms: model -> parameter -> how it is kept.
        seed: seed of the weights.
    """
    folder.mkdir(exist_ok=True)
    modules = {name: tiny(seed + index, width=WIDTH) for index, name in enumerate(forms)}
    states = {name: {key: value.numpy() for key, value in each.state_dict().items()} for name, each in modules.items()}
    made, tensors, layers = kept_state(states, forms, seed)
    for name, module in modules.items():
        module.load_state_dict({key: torch.from_numpy(np.asarray(value)) for key, value in made[name].items()})
        save(module, folder / f"{name}.safetensors")
    write_forms(folder, tuple(forms), tensors, layers)
    write_video(folder / "yard.mp4")
    queries = [query(name) for name in forms]
    for each in queries:
        each["model"]["args"] = {"width": WIDTH}
    document = {"schema_version": "1", "feeds": {"yard": {"source": "yard.mp4", "fps": 10}}, "queries": queries}
    (folder / "workload.yaml").write_text(json.dumps(document))
    return load_workload(folder / "workload.yaml")
