"""Measure models whose kernels are differences: swap-in beside a run, and runs beside the unmerged model.

    .venv/bin/python tools/bench_forms.py [--rounds 30] [--bits 2]

Three MobileNetV2, and three ResNet18, with random weights: neither times nor bytes depend on training. Every
convolution and the classifier are differences beside one base. Each model is swapped in, which computes its kernels
from base and codes, and run on one image of 224 x 224 pixels, on one thread. The same weights without forms are the
unmerged models. All of it alternates in one process. Times are CPU times of that thread; medians are printed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from time import thread_time
from typing import Any, get_args

import no_telemetry  # noqa: F401
import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from safetensors.numpy import save_file

from gemel.bundles.blob import tensor_id
from gemel.bundles.codes import Bits, pack_codes, restore
from gemel.bundles.reader import Bundle, open_bundle
from gemel.check.contents.inspect import sizes
from gemel.compiler import compile_workload
from gemel.runtime.backends.ort_cpu import OrtCpu
from gemel.workload import load_workload

_SIZE = 224
_COUNT = 3
"""Number of models of one architecture."""
_MODELS = ("mobilenet_v2", "resnet18")

_State = dict[str, NDArray[Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="runs and swap-ins of each model")
    parser.add_argument("--bits", type=int, default=2, choices=get_args(Bits), help="bits of one code")
    options = parser.parse_args()
    table = Table(title=f"differences of {options.bits} bits, one thread, medians")
    for column in ("model", "weights, MB", "bundle, MB", "unmerged, MB", "swap-in, ms", "run, ms", "swap-in / run"):
        table.add_column(column, justify="right" if column != "model" else "left")
    table.add_column("run / unmerged", justify="right")
    for model in _MODELS:
        with tempfile.TemporaryDirectory() as folder:
            forms, plain = _compiled(Path(folder), model, options.bits)
            table.add_row(model, *_measured(forms, plain, options.rounds))
    Console(width=120).print(table)


def _compiled(folder: Path, model: str, bits: Bits) -> tuple[Bundle, Bundle]:
    """Compile models with the same weights twice: as differences, and as they are."""
    states = [_state(model, seed) for seed in range(_COUNT)]
    bases = {name: array for name, array in _state(model, _COUNT).items() if array.ndim > 1}
    bundles = []
    tensors: _State = {f"base.{tensor_id(array)}": array for array in bases.values()}
    layers: list[Mapping[str, Any]] = []
    made = [_differences(f"q{index}", state, bases, bits, tensors, layers) for index, state in enumerate(states)]
    for kind in ("forms", "plain"):
        own = folder / kind
        own.mkdir()
        for index, state in enumerate(made):
            save_file(state, own / f"q{index}.safetensors")
        if kind == "forms":
            save_file(tensors, own / "forms.safetensors")
            (own / "merge.json").write_text(json.dumps(_report(layers)))
        workload = load_workload(_workload(own, model))
        bundles.append(open_bundle(compile_workload(workload, own / "bundle").path))
    return bundles[0], bundles[1]


def _state(model: str, seed: int) -> _State:
    """Return the weights of a model with random BatchNorms, as after training."""
    torch.manual_seed(seed)
    state = torchvision.models.get_model(model).state_dict()
    for name, value in state.items():
        if value.dim() == 1 and "num" not in name:
            value.copy_(torch.rand_like(value) + 0.5)
    return {name: value.numpy() for name, value in state.items()}


def _differences(
    model: str,
    state: Mapping[str, NDArray[Any]],
    bases: Mapping[str, NDArray[np.float32]],
    bits: Bits,
    tensors: _State,
    layers: list[Mapping[str, Any]],
) -> _State:
    """Return the weights of a model as they are once its kernels are differences.

    Args:
        model: name of the model.
        state: weights of the model.
        bases: parameter -> base.
        bits: bits of one code.
        tensors: tensors of the file of the forms, to which the codes are added.
        layers: entries of merge.json, to which the model's are added.
    """
    made = dict(state)
    for name, base in bases.items():
        rows = (state[name] - base).reshape(len(base), -1)
        largest = max(1, 2 ** (bits - 1) - 1)
        scale = (np.abs(rows).max(1) / largest + 1e-6).astype(np.float32)
        codes = np.where(rows < 0, -1, 1) if bits == 1 else np.rint(rows / scale[:, None]).astype(np.int64)
        packed, kernel, index = pack_codes(codes, bits), np.empty_like(base), len(layers)
        restore(kernel, packed, scale, bits, base=base)
        made[name] = kernel
        tensors |= {f"{index}.codes": packed, f"{index}.scale": scale}
        layers.append(
            {
                "model": model,
                "parameter": name,
                "index": index,
                "shape": base.shape,
                "kind": "difference",
                "bits": bits,
                "base": f"base.{tensor_id(base)}",
            }
        )
    return made


def _report(layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the content of merge.json; accuracies and bytes are not those of a merge."""
    accuracy = {"original": 1.0, "reached": 1.0, "relative": 1.0, "target": 0.95}
    return {
        "strategy": "none",
        "seed": 0,
        **dict.fromkeys(("original_bytes", "merged_bytes", "layer_bytes"), 0),
        **dict.fromkeys(("saving", "layer_saving", "potential"), 0.0),
        "finished": True,
        "queries": {f"q{index}": {"model": f"q{index}", **accuracy} for index in range(_COUNT)},
        "trials": [],
        "shared": [],
        "forms": {"file": "forms.safetensors", "layers": layers},
    }


def _workload(folder: Path, model: str) -> Path:
    queries = [
        {
            "name": f"q{index}",
            "feed": "yard",
            "task": "classification",
            "model": {
                "factory": f"torchvision.models:{model}",
                "weights": f"q{index}.safetensors",
                "input": {"size": [_SIZE, _SIZE]},
            },
        }
        for index in range(_COUNT)
    ]
    document = {"schema_version": "1", "feeds": {"yard": {"source": "yard.mp4", "fps": 10}}, "queries": queries}
    path = folder / "workload.yaml"
    path.write_text(json.dumps(document))
    return path


def _measured(forms: Bundle, plain: Bundle, rounds: int) -> list[str]:
    """Return the cells of a row: bytes, and medians of paired times."""
    image = {"image": np.random.default_rng(0).random((1, 3, _SIZE, _SIZE), np.float32)}
    # Two models need more than one, so that every swap-in computes kernels.
    with OrtCpu(forms, memory="min", threads=1) as ours, OrtCpu(plain, threads=1) as theirs:

        def run(backend: OrtCpu, model: str) -> Callable[[], object]:
            return lambda: backend.run(model, "main", image)

        swaps, runs, unmerged, ratios = [], [], [], []
        for number in range(rounds + 1):
            for model in forms.manifest.models:
                swap = _seconds(lambda model=model: ours.activate(model))  # type: ignore[misc]
                theirs.activate(model)
                pair = (run(ours, model), run(theirs, model))
                for each in pair:
                    each()
                # Whoever comes second finds warmer caches, so the two take turns at it.
                order = (0, 1) if number % 2 else (1, 0)
                times = {index: _seconds(pair[index]) for index in order}
                ours.release(model)
                theirs.release(model)
                if number:
                    swaps.append(swap)
                    runs.append(times[0])
                    unmerged.append(times[1])
                    ratios.append(times[0] / times[1])
    held, before = sizes(forms), sizes(plain)
    bytes_ = (held["models"] / _COUNT, held["unique"], before["unique"])
    return [
        *(f"{size / 1e6:.1f}" for size in bytes_),
        f"{median(swaps) * 1e3:.2f}",
        f"{median(runs) * 1e3:.2f}",
        f"{median(swaps) / median(runs):.2f}",
        f"{median(ratios):.3f}",
    ]


def _seconds(work: Callable[[], object]) -> float:
    """Return the CPU time of this thread that a function takes."""
    began = thread_time()
    work()
    return thread_time() - began


if __name__ == "__main__":
    main()
