"""Baseline files: properties of a bundle and its engines, to find out later whether a newer bundle is worse.

A baseline survives retraining: it holds names, counts and sizes, and no tensor ids, which change with every weight. It
is valid on other machines: run times are kept as ratios to a plain ONNX Runtime session of the same model.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from ...bundles.manifest import Id, Name
from ...bundles.program import Program, read_model, split_model
from ...bundles.reader import Bundle
from ...bundles.value import Value, problem
from ...durable import write_whole
from ...errors import InputError
from ...runtime.engines.store import engines_in

__all__ = [
    "BASELINE_VERSION",
    "Baseline",
    "EnginesBaseline",
    "StageBaseline",
    "baseline_of",
    "measure_latency",
    "read_baseline",
    "write_baseline",
]

BASELINE_VERSION = "1.0"
"""Version of the format of baseline files; a file of another major version is refused."""

_ROUNDS = 30
"""Number of timed runs of each model for a baseline's run times, in gemel and in a plain ONNX Runtime session alike."""
_FLOATS = frozenset({1, 10, 11, 16})
"""TensorProto.DataType numbers of float, float16, double and bfloat16."""

InitializerUse = Annotated[str, Field(pattern=r"^[^/:]+/[^/:]+: .+$")]
"""Type of text that names an initializer in a stage's ONNX file: ``model/stage: name``."""
_Size = Annotated[int, Field(ge=0)]


class StageBaseline(Value):
    """Baseline entry of one stage of a model: properties of its program, a graph whose weights are inputs."""

    program: Id
    graph: Id
    """Digest of a stage's program without the values of the program's constant floats, which training may change."""
    operators: dict[str, _Size]
    """Operator -> number of nodes with this operator in a stage's program."""
    inputs: _Size
    """Number of weights that are inputs of a stage's program."""


class ModelBaseline(Value):
    """Baseline entry of one model: its mode, and its stages.

    In mode ``bound``, weights are graph inputs that are bound to addresses in the arena. In mode ``constant``, the
    session holds a private copy of the weights.
    """

    mode: Literal["bound", "constant"]
    stages: dict[Name, StageBaseline]


class SharedBaseline(Value):
    """Baseline entry of one tensor that more than one initializer of the bundle's ONNX files holds."""

    bytes: _Size
    uses: tuple[InitializerUse, ...]


class EngineBaseline(Value):
    """Baseline entry of one TensorRT engine: its size in bytes, and numbers of its layers and weight inputs."""

    bytes: _Size
    layers: _Size
    inputs: _Size
    """Number of weights that are inputs of a TensorRT engine."""


class EnginesBaseline(Value):
    """Baseline entry of the engines that one version of one library built for one set of devices.

    The library is TensorRT or TensorRT for RTX.
    """

    library: str
    version: str
    targets: tuple[str, ...]
    """Compute capabilities of the graphics cards that a set of TensorRT engines runs on."""
    device: str | None = None
    """Name of the graphics card that TensorRT engines were built on; None if there was none."""
    engines: dict[Name, dict[Name, EngineBaseline]]
    """Model -> stage -> baseline entry of the stage's TensorRT engine."""


class Baseline(Value):
    """Content of a baseline file: properties of a bundle that later bundles are compared with."""

    schema_version: str = BASELINE_VERSION
    unique_bytes: _Size
    """Bytes of all weights of a bundle, each distinct tensor counted once."""
    models: dict[Name, ModelBaseline]
    shared: tuple[SharedBaseline, ...]
    engines: tuple[EnginesBaseline, ...]
    latency: dict[Name, Annotated[float, Field(gt=0)]] = Field(default={})
    """Model -> CPU time of its run on ort-cpu, divided by that of a plain ONNX Runtime session; empty if not
    measured."""


def baseline_of(bundle: Bundle, latency: Mapping[str, float] | None = None) -> Baseline:
    """Return the baseline of a bundle: properties of its models, weights and engines for later comparison.

    Args:
        bundle: open bundle.
        latency: result of :func:`measure_latency`; None if run times were not measured.

    Raises:
        BundleError: an engine is damaged.
        BackendError: a graph has subgraphs, see :func:`gemel.bundles.program.split_model`.
    """
    content = bundle.manifest
    models: dict[str, ModelBaseline] = {}
    uses: dict[str, list[str]] = defaultdict(list)
    for name, model in content.models.items():
        stages = {}
        for stage, spec in model.stages.items():
            program = split_model(read_model(bundle.file(spec.file).read_bytes()))
            stages[stage] = _stage(program)
            for weight, tensor in zip(program.weights, spec.weights, strict=True):
                uses[tensor].append(f"{name}/{stage}: {weight}")
        models[name] = ModelBaseline(mode=model.mode, stages=stages)
    shared = [
        SharedBaseline(bytes=content.bytes_of(tensor), uses=tuple(sorted(places)))
        for tensor, places in uses.items()
        if len(places) > 1
    ]
    return Baseline(
        unique_bytes=sum(content.tensors[tensor].length for tensor in content.resident),
        models=models,
        shared=tuple(sorted(shared, key=lambda each: each.uses)),
        engines=tuple(
            EnginesBaseline(
                library=built.library,
                version=built.version,
                targets=built.targets,
                device=built.device,
                engines={
                    name: {
                        stage: EngineBaseline(**built.engines[spec.program].model_dump())
                        for stage, spec in model.stages.items()
                        if spec.program in built.engines
                    }
                    for name, model in content.models.items()
                },
            )
            for built in sorted(engines_in(bundle), key=lambda each: each.title)
        ),
        latency=latency or {},
    )


def measure_latency(bundle: Bundle, progress: Callable[[str], None] = lambda model: None) -> dict[str, float]:
    """Measure each model's CPU time on one thread, divided by that of a plain ONNX Runtime session of the same model.

    Args:
        bundle: open bundle; its device cache is created if it is missing.
        progress: called with the name of each model before the model is measured.

    Returns:
        Model name -> ratio. gemel and the plain session are timed alternately.

    Raises:
        BackendError: a model cannot be run.
    """
    from ..bench.bench import latency_ratio

    found = {}
    for name, model in bundle.manifest.models.items():
        progress(name)
        ratio, _, _ = latency_ratio(bundle.path, name, bundle.file(model.stages["main"].file), _ROUNDS)
        found[name] = float(f"{ratio:.4g}")
    return found


def read_baseline(path: Path) -> Baseline:
    """Read a baseline file, which holds properties of an earlier bundle.

    Raises:
        InputError: the file cannot be read, is not a baseline, or has another major version.
    """
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise InputError(f"{path}: a JSON object is expected")
    version = document.get("schema_version")
    if str(version).partition(".")[0] != BASELINE_VERSION.partition(".")[0]:
        raise InputError(
            f"{path}: schema_version is {version!r}, this gemel reads {BASELINE_VERSION!r}: gemel check"
            " --write-baseline writes it anew"
        )
    try:
        return Baseline.model_validate(document)
    except ValidationError as error:
        raise InputError(f"{path}: {problem(error)}") from error


def write_baseline(path: Path, baseline: Baseline) -> None:
    """Write the baseline of a bundle to a JSON file. Replace an existing file only when the new one is complete.

    Raises:
        InputError: the file cannot be written.
    """
    path = path.resolve()
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: cannot be written: it is not a plain file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, f"{baseline.model_dump_json(indent=1)}\n".encode())
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error


def _stage(program: Program) -> StageBaseline:
    """Return the baseline entry of one stage: id, digest, operator counts and weight inputs of its program."""
    model = read_model(program.proto)
    operators = Counter(node.op_type for node in model.graph.node)
    for tensor in model.graph.initializer:
        if tensor.data_type in _FLOATS:
            for field in ("raw_data", "float_data", "double_data", "int32_data"):
                tensor.ClearField(field)
    digest = hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()[:32]
    return StageBaseline(
        program=program.id, graph=digest, operators=dict(sorted(operators.items())), inputs=len(program.weights)
    )
