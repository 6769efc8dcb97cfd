"""Measure models whose kernels are differences: swap-in beside a run, and runs beside the unmerged model.

    .venv/bin/python tools/bench_forms.py [--rounds 30] [--bits 2]

Three MobileNetV2, and three ResNet18, with random weights: neither times nor bytes depend on training. Every
convolution and the classifier are differences beside one base, which is float32 in one bundle and 8-bit codes in
another. Each model is swapped in, which computes its kernels from base and codes, and run on one image of 224 x 224
pixels, on one thread. The weights of the first bundle without forms are the unmerged models. All of it alternates in
one process. Beside them, plain weights of one model are copied within memory, to pages that are there. Times are CPU
times of that thread; medians are printed, and of ratios the medians of those of one round.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
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
from gemel.bundles.codes import BASE_BITS, Bits, pack_codes
from gemel.bundles.reader import Bundle, open_bundle
from gemel.check.contents.inspect import sizes
from gemel.compiler import compile_workload
from gemel.merging.forms.quantize import materialize, quantize_kernel
from gemel.runtime.backends.ort_cpu import OrtCpu
from gemel.workload import load_workload

_SIZE = 224
_COUNT = 3
"""Number of models of one architecture."""
_MODELS = ("mobilenet_v2", "resnet18")
_BASES = ("float32", "8 bits")
"""Kinds of base that are compared."""
_BASE_INDEX = 100_000
"""Number in the file of the forms from which the bases in codes are counted."""

_State = dict[str, NDArray[Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="runs and swap-ins of each model")
    parser.add_argument("--bits", type=int, default=2, choices=get_args(Bits), help="bits of one code")
    options = parser.parse_args()
    table = Table(title=f"differences of {options.bits} bits, one thread, medians")
    for column in ("model", "base", "weights, MB", "bundle, MB", "unmerged, MB", "swap-in, ms", "copy, ms", "run, ms"):
        table.add_column(column, justify="right" if "," in column else "left")
    for column in ("swap-in / run", "copy / run", "/ with float32", "run / unmerged"):
        table.add_column(column, justify="right")
    for model in _MODELS:
        with tempfile.TemporaryDirectory() as folder:
            bundles = _compiled(Path(folder), model, options.bits)
            for row in _measured(bundles, options.rounds):
                table.add_row(model, *row)
    Console(width=140).print(table)


def _compiled(folder: Path, model: str, bits: Bits) -> dict[str, Bundle]:
    """Compile models as differences to a base of each kind, and as they are."""
    states = [_state(model, seed) for seed in range(_COUNT)]
    kernels = {name: array for name, array in _state(model, _COUNT).items() if array.ndim > 1}
    plain: list[_State] = []
    bundles = {}
    for kind in (*_BASES, "plain"):
        own = folder / kind
        own.mkdir()
        made = plain
        if kind != "plain":
            tensors, layers = _State(), list[Mapping[str, Any]]()
            bases = {name: _base(array, kind, tensors) for name, array in kernels.items()}
            made = [
                _differences(f"q{index}", state, bases, bits, tensors, layers) for index, state in enumerate(states)
            ]
            plain = plain or made
            save_file(tensors, own / "forms.safetensors")
            (own / "merge.json").write_text(json.dumps(_report(layers)))
        for index, state in enumerate(made):
            save_file(state, own / f"q{index}.safetensors")
        workload = load_workload(_workload(own, model))
        bundles[kind] = open_bundle(compile_workload(workload, own / "bundle").path)
    return bundles


def _base(array: NDArray[np.float32], kind: str, tensors: _State) -> tuple[NDArray[np.float32], Mapping[str, Any]]:
    """Return a base and how merge.json refers to it.

    Args:
        array: base in float32.
        kind: ``float32``, or ``8 bits`` for codes.
        tensors: tensors of the file of the forms, to which those of the base are added.
    """
    if kind == "float32":
        name = f"base.{tensor_id(array)}"
        tensors[name] = array
        return array, {"base": name}
    index = _BASE_INDEX + len(tensors)
    return _add_codes(array, BASE_BITS, index, tensors), {"base_index": index}


def _add_codes(array: NDArray[np.float32], bits: Bits, index: int, tensors: _State) -> NDArray[np.float32]:
    """Add the codes and scales of an array to the tensors of the file of the forms, and return what they give."""
    coded = quantize_kernel(torch.from_numpy(array), bits)
    tensors |= {f"{index}.codes": pack_codes(coded.codes.numpy(), bits), f"{index}.scale": coded.scale.numpy()}
    return np.asarray(materialize(coded).numpy(), np.float32)


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
    bases: Mapping[str, tuple[NDArray[np.float32], Mapping[str, Any]]],
    bits: Bits,
    tensors: _State,
    layers: list[Mapping[str, Any]],
) -> _State:
    """Return the weights of a model as they are once its kernels are differences.

    Args:
        model: name of the model.
        state: weights of the model.
        bases: parameter -> base, and how merge.json refers to it.
        bits: bits of one code.
        tensors: tensors of the file of the forms, to which the codes are added.
        layers: entries of merge.json, to which the model's are added.
    """
    made = dict(state)
    for name, (base, reference) in bases.items():
        index = len(layers)
        made[name] = base + _add_codes(state[name] - base, bits, index, tensors)
        layers.append(
            {
                "model": model,
                "parameter": name,
                "index": index,
                "shape": base.shape,
                "kind": "difference",
                "bits": bits,
                **reference,
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


def _measured(bundles: Mapping[str, Bundle], rounds: int) -> Iterator[list[str]]:
    """Yield the cells of a row for each kind of base: bytes, and medians of paired times."""
    image = {"image": np.random.default_rng(0).random((1, 3, _SIZE, _SIZE), np.float32)}
    swaps: dict[str, list[float]] = {kind: [] for kind in bundles}
    runs: dict[str, list[float]] = {kind: [] for kind in bundles}
    copies: list[float] = []
    weights = np.ones(sizes(bundles["plain"])["models"] // _COUNT // 4, np.float32)
    # Written once, so that a copy finds its pages.
    there = weights.copy()
    with ExitStack() as opened:
        # Two models need more than the least memory, so that every swap-in computes kernels.
        backends = {
            kind: opened.enter_context(OrtCpu(bundle, memory="all" if kind == "plain" else "min", threads=1))
            for kind, bundle in bundles.items()
        }
        for number in range(rounds + 1):
            # Whoever comes later finds warmer caches, so they take turns at it.
            order = [*backends][number % len(backends) :] + [*backends][: number % len(backends)]
            for model in bundles["plain"].manifest.models:
                swap = {kind: _seconds(lambda kind=kind: backends[kind].activate(model)) for kind in order}  # type: ignore[misc]  # noqa: B023
                for backend in backends.values():
                    backend.run(model, "main", image)
                run = {kind: _seconds(lambda kind=kind: backends[kind].run(model, "main", image)) for kind in order}  # type: ignore[misc]  # noqa: B023
                copied = _seconds(lambda: np.copyto(there, weights))
                if number:
                    copies.append(copied)
                for kind, backend in backends.items():
                    backend.release(model)
                    if number:
                        swaps[kind].append(swap[kind])
                        runs[kind].append(run[kind])
    for kind in _BASES:
        held, before = sizes(bundles[kind]), sizes(bundles["plain"])
        bytes_ = (held["models"] / _COUNT, held["unique"], before["unique"])
        yield [
            kind,
            *(f"{size / 1e6:.1f}" for size in bytes_),
            *(f"{median(times) * 1e3:.2f}" for times in (swaps[kind], copies, runs[kind])),
            *(f"{median(times) / median(runs[kind]):.3f}" for times in (swaps[kind], copies)),
            f"{_ratio(swaps[kind], swaps['float32']):.3f}",
            f"{_ratio(runs[kind], runs['plain']):.3f}",
        ]


def _ratio(times: Sequence[float], others: Sequence[float]) -> float:
    """Return the median of the ratios of paired times."""
    return median(one / other for one, other in zip(times, others, strict=True))


def _seconds(work: Callable[[], object]) -> float:
    """Return the CPU time of this thread that a function takes."""
    began = thread_time()
    work()
    return thread_time() - began


if __name__ == "__main__":
    main()
