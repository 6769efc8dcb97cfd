"""Ways to run the models of one workload, each with its fastest or smallest settings, and their measurement.

``python tools/rival_ways.py FOLDER [WAY]`` measures one way in this process, or the run times of all ways in turns, and
prints the result as JSON. ``tools/bench_rivals.py`` makes the folder and calls this file. Libraries are imported by
the ways that need them, so that the memory of a way has no other library in it.
"""

from __future__ import annotations

import gc
import json
import os
import random
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache, cached_property, partial
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["FIRST", "PLAIN", "WAYS", "OnnxRuntime", "OpenVino"]

Run = Callable[[NDArray[np.float32]], object]
"""Function that runs a model on one image."""

_LOADS = 6
"""Number of timed loads from the page cache, and from the disk."""


class Way(Protocol):
    """Way to run the models of a workload: opens and closes them, and knows the files that it reads."""

    files: list[Path]
    """Files that the way reads when it starts the second time."""

    def load(self, model: str) -> Run:
        """Make a model ready to run."""
        ...

    def unload(self, model: str) -> None:
        """Free a model's weights."""
        ...


class Gemel:
    """Backend of gemel with all weights in memory, on one thread.

    Args:
        folder: the bundle. Nothing else may be in the folder.
        backend: name of the backend.
    """

    def __init__(self, folder: Path, backend: str) -> None:
        from gemel.bundles.reader import open_bundle
        from gemel.runtime.backends import open_backend

        self._bundle = open_bundle(folder)
        self._backend: Any = open_backend(self._bundle, backend, memory="all", threads=1)
        self._used: set[str] = set()
        self.files = files_below(folder)

    def load(self, model: str) -> Run:
        mode = self._backend.modes[model]
        (port,) = self._bundle.manifest.models[model].stages["main"].inputs
        if model in self._used and mode != "bound":
            copy = self._load_copy(model, mode)
            return lambda image: copy.run({port.name: image})
        self._used.add(model)
        self._backend.activate(model)
        return lambda image: self._backend.run(model, "main", {port.name: image})

    def unload(self, model: str) -> None:
        self._backend.release(model)
        self._backend.evict()

    def _load_copy(self, model: str, mode: str) -> Any:
        """Load a private copy of a model's weights again, which the backend itself does once and then keeps."""
        if mode == "openvino":
            from gemel.runtime.ov.openvino_cpu import OvPrecision, load_program

            precision: OvPrecision = "default" if model in self._compiled.bf16 else "f32"
            return load_program(self._compiled.path(model, "main"), 1, precision)
        from gemel.runtime.ort.session import Bound, open_baked

        return Bound(open_baked(self._backend.baked.packed(model, "main"), 1, prepack=True))

    @cached_property
    def _compiled(self) -> Any:
        """Device cache of the programs that OpenVINO compiled."""
        from gemel.runtime.ov.compiled_cache import compiled_models

        return compiled_models(self._bundle, "f32", beside=self._backend.baked)


class OnnxRuntime:
    """Sessions of ONNX Runtime, one a model, on one thread.

    Args:
        folder: folder with ``<model>.onnx`` and their weights.
        shared: whether all sessions take activations from one allocator.
        optimised: whether the files were optimised for this CPU before, so that sessions leave graphs as they are.
        prepack: whether sessions may make a copy of weights in the layout that their kernels want.
    """

    def __init__(self, folder: Path, *, shared: bool, optimised: bool = False, prepack: bool = True) -> None:
        import onnxruntime as ort

        self._folder, self.files, self._sessions = folder, files_below(folder), dict[str, Any]()
        self._open = partial(ort.InferenceSession, providers=["CPUExecutionProvider"])
        self._options = ort.SessionOptions()
        self._options.intra_op_num_threads = 1
        self._options.log_severity_level = 4
        if shared:
            _share_activations()
            self._options.add_session_config_entry("session.use_env_allocators", "1")
        if optimised:
            self._options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        if not prepack:
            self._options.add_session_config_entry("session.disable_prepacking", "1")

    def load(self, model: str) -> Run:
        session = self._sessions[model] = self._open(str(self._folder / f"{model}.onnx"), self._options)
        (port,) = session.get_inputs()
        return lambda image: session.run(None, {port.name: image})

    def unload(self, model: str) -> None:
        del self._sessions[model]


@cache
def _share_activations() -> None:
    """Make the allocator that all sessions of the process may share, unless gemel has made it already."""
    import onnxruntime as ort

    info = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    # ONNX Runtime makes one in a process, and refuses a second one.
    with suppress(Exception):
        ort.create_and_register_allocator(info, None)


class OpenVino:
    """Models that OpenVINO compiles or loads from its own cache, on one thread.

    Args:
        folder: folder with ``<model>.onnx`` and their weights.
        kept: folder of OpenVINO's cache.
        precision: precision of layers that are not int8; OpenVINO's choice if None.
    """

    def __init__(self, folder: Path, kept: Path, precision: str | None) -> None:
        # OpenVINO's reports to Google Analytics, which it leaves out without this module.
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
        import openvino

        self._folder, self._core, self._requests = folder, openvino.Core(), dict[str, Any]()
        self.files = [*files_below(folder), *files_below(kept)]
        self._settings = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "CACHE_DIR": str(kept)}
        if precision is not None:
            self._settings["INFERENCE_PRECISION_HINT"] = precision

    def load(self, model: str) -> Run:
        path = self._folder / f"{model}.onnx"
        request = self._core.compile_model(str(path), "CPU", self._settings).create_infer_request()
        self._requests[model] = request
        return lambda image: request.infer({0: image}, share_inputs=True)

    def unload(self, model: str) -> None:
        del self._requests[model]


PLAIN = "ONNX Runtime, a file a model"
FIRST = "gemel `ort-cpu`"
WAYS: dict[str, Callable[[Path], Way]] = {
    FIRST: lambda at: Gemel(at / "gemel", "ort-cpu"),
    "gemel `auto-cpu`, float32": lambda at: Gemel(at / "gemel-auto", "auto-cpu"),
    "gemel `auto-cpu`, bf16 accepted": lambda at: Gemel(at / "gemel-bf16", "auto-cpu"),
    PLAIN: lambda at: OnnxRuntime(at / "plain", shared=False),
    "the same, shared allocator": lambda at: OnnxRuntime(at / "plain", shared=True),
    "ONNX Runtime, the bundle's own files, shared allocator": lambda at: OnnxRuntime(at / "own", shared=True),
    "ONNX Runtime, optimised once, weights outside, shared allocator": lambda at: OnnxRuntime(
        at / "optimised", shared=True, optimised=True, prepack=False
    ),
    "OpenVINO, float32": lambda at: OpenVino(at / "plain", at / "openvino-f32", "f32"),
    "OpenVINO, default precision": lambda at: OpenVino(at / "plain", at / "openvino-default", None),
    "gemel `ort-cpu`, int8": lambda at: Gemel(at / "gemel-int8", "ort-cpu"),
    "gemel `auto-cpu`, int8": lambda at: Gemel(at / "gemel-int8-auto", "auto-cpu"),
    "ONNX Runtime, int8 by its own tool, optimised once, shared allocator": lambda at: OnnxRuntime(
        at / "static-int8", shared=True, optimised=True
    ),
    "OpenVINO, int8": lambda at: OpenVino(at / "own-int8", at / "openvino-int8", None),
}
"""Name of a way -> function that opens it, in a folder that ``tools/bench_rivals.py`` has made."""


def files_below(folder: Path) -> list[Path]:
    """Return all files in a folder and in the folders in it."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def images(at: Path) -> dict[str, NDArray[np.float32]]:
    """Return model -> one image of noise, for the models of the workload's bundle."""
    models = json.loads((at / "gemel" / "manifest.json").read_text())["models"]
    shapes = {name: model["stages"]["main"]["inputs"][0]["shape"] for name, model in models.items()}
    noise = np.random.default_rng(0)
    return {
        name: noise.random([each if isinstance(each, int) else 1 for each in shape], np.float32)
        for name, shape in shapes.items()
    }


def measure(at: Path, way: str) -> dict[str, Any]:
    """Measure memory, loads and files of one way.

    Returns:
        ``memory_mb`` (proportional set size of this process after a run of each model), ``load_ms`` (loads from the
        page cache), ``warm_ms`` and ``cold_ms`` (a load from the page cache or the disk, and the first run after it:
        some ways read weights only then), ``disk_mb`` (files that the way reads at its next start).
    """
    inputs = images(at)
    opened = WAYS[way](at)
    for model, image in inputs.items():
        opened.load(model)(image)
    memory = _pss()
    for model in inputs:
        opened.unload(model)
    gc.collect()
    times: dict[str, list[float]] = {"load_ms": [], "warm_ms": [], "cold_ms": []}
    for turn in range(2 * _LOADS):
        cold, (model, image) = turn >= _LOADS, list(inputs.items())[turn % len(inputs)]
        if cold:
            _drop(opened.files)
        began = perf_counter()
        run = opened.load(model)
        loaded = perf_counter()
        run(image)
        times["cold_ms" if cold else "warm_ms"].append((perf_counter() - began) * 1e3)
        if not cold:
            times["load_ms"].append((loaded - began) * 1e3)
        del run
        opened.unload(model)
        gc.collect()
    files = {path.stat().st_ino: path.stat().st_blocks * 512 / 1e6 for path in WAYS[way](at).files}
    return {"memory_mb": memory, **times, "disk_mb": sum(files.values())}


def measure_runs(at: Path, rounds: int, most: int) -> dict[str, tuple[float, float]]:
    """Measure the CPU time of runs of all ways, in an order that is shuffled every round.

    A session that follows a like one finds its code and the CPU's units awake, so no way always follows the same one.

    Args:
        at: folder of the workload.
        rounds: number of timed rounds.
        most: number of models that are timed; a round runs each of them once in each way.

    Returns:
        Way -> median CPU time of one model's run in milliseconds, and median of its ratio to the plain way.
    """
    inputs = dict(list(images(at).items())[:most])
    opened = {name: way(at) for name, way in WAYS.items()}
    runs = {name: {model: way.load(model) for model in inputs} for name, way in opened.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    shuffled = random.Random(0)
    for turn in range(rounds + 3):
        for name in shuffled.sample(list(runs), len(runs)):
            began = process_time()
            for model, image in inputs.items():
                runs[name][model](image)
            if turn >= 3:
                times[name].append((process_time() - began) * 1e3 / len(inputs))
    return {
        name: (median(each), median(ours / plain for ours, plain in zip(each, times[PLAIN], strict=True)))
        for name, each in times.items()
    }


def _drop(files: Sequence[Path]) -> None:
    """Drop files from the page cache."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _pss() -> float:
    """Return the proportional set size (PSS) of this process in MB (10^6 bytes)."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("Pss:"))


if __name__ == "__main__":
    folder, part, *rest = sys.argv[1:]
    found = measure_runs(Path(folder), *map(int, rest)) if part == "runs" else measure(Path(folder), part)
    print(json.dumps(found))
