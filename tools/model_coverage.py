"""Compile, run and compare every architecture, and write the table of docs/coverage.md, one row per architecture.

    .venv/bin/python tools/model_coverage.py [--only NAME ...] [--rounds 15]

Weights are random: differences and times do not depend on training, and no package registry has trained weights of
these architectures. BatchNorm statistics are randomised too, so that a wrongly folded BatchNorm would show.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import no_telemetry  # noqa: F401
import onnxruntime
import torch
from documents import write_between
from rich.console import Console
from safetensors.torch import save_file
from torch import nn

from gemel.bundles.reader import Bundle, open_bundle
from gemel.check.bench.bench import latency_ratio
from gemel.check.source.numerics import compare_with_source
from gemel.check.source.plain_export import export_plain
from gemel.compiler import compile_workload
from gemel.compiler.compile import ConvertPrecision
from gemel.runtime.backends.ort_cpu import OrtCpu
from gemel.workload import Workload, load_workload

DOC = Path(__file__).parent.parent / "docs" / "coverage.md"
PARTS = Path(__file__).parent.parent / "out" / "coverage"


@dataclass(frozen=True)
class Case:
    """Architecture to measure, and the way in which its workload names it."""

    name: str
    factory: str
    args: dict[str, Any]
    task: str = "classification"
    size: tuple[int, int] | None = None
    """Height and width of the input in pixels; None for the model's default."""


def _torchvision(name: str, **args: Any) -> Case:
    return Case(name, f"torchvision.models:{name}", args)


def _detector(name: str, factory: str, size: tuple[int, int] | None = None, **args: Any) -> Case:
    bare = {"weights": None, "weights_backbone": None, **args} if factory.startswith("torchvision") else args
    return Case(name, factory, bare, "detection", size)


# Every model that the paper names, then newer ones.
CASES = [
    *(_torchvision(name) for name in ("alexnet", "vgg11", "vgg13", "vgg16", "vgg19")),
    *(_torchvision(name) for name in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")),
    _torchvision("inception_v3", init_weights=False, aux_logits=True),
    _torchvision("googlenet", init_weights=False, aux_logits=True),
    *(_torchvision(name) for name in ("mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small", "squeezenet1_1")),
    *(_torchvision(name) for name in ("densenet121", "shufflenet_v2_x1_0", "mnasnet1_0")),
    _detector("ssd300_vgg16", "torchvision.models.detection:ssd300_vgg16"),
    _detector("ssdlite320_mobilenet_v3", "torchvision.models.detection:ssdlite320_mobilenet_v3_large"),
    _detector("fasterrcnn_resnet50_fpn", "torchvision.models.detection:fasterrcnn_resnet50_fpn", (480, 640)),
    _detector("yolov3", "gemel.workload.zoo.darknet:yolov3"),
    _detector("yolov3_tiny", "gemel.workload.zoo.darknet:yolov3_tiny"),
    _torchvision("efficientnet_b0"),
    _torchvision("regnet_y_800mf"),
    Case("vit_tiny_patch16_224 (timm)", "timm:create_model", {"model_name": "vit_tiny_patch16_224"}),
    Case("vit_small_patch16_224 (timm)", "timm:create_model", {"model_name": "vit_small_patch16_224"}),
    _detector("retinanet_resnet50_fpn", "torchvision.models.detection:retinanet_resnet50_fpn", (320, 320)),
]


@dataclass(frozen=True)
class Row:
    """Measured figures of one architecture: size, difference from PyTorch, run times and load times."""

    name: str
    megabytes: float
    mode: str
    inputs: int
    """Number of weights that are inputs of the architecture's programs."""
    difference: float
    """Largest difference of an output from PyTorch's, relative to the output's largest value."""
    ratio: float
    """CPU time of a run in gemel, divided by that of a default ONNX Runtime session."""
    ratio_kept: float | None
    """CPU time of a run with shared kernels and private BatchNorms, divided by that of a default session.

    None for a model without BatchNorm."""
    gemel_ms: float
    plain_ms: float
    bind_ms: float
    program_ms: float
    plain_load_ms: float
    compile_s: float


def measure(case: Case, folder: Path, rounds: int) -> Row:
    """Compile one architecture, compare it with PyTorch, and measure its run and load times.

    Args:
        case: architecture to measure.
        folder: folder for weights, workload and bundles.
        rounds: number of timed repetitions.
    """
    workload, bundle, compile_s = bundle_of(case, folder)
    model = bundle.manifest.models["a"]
    result = next(iter(compare_with_source(bundle, workload, rtol=1e-3, atol=1e-5)))
    plain = export_plain(workload, folder)["a"]
    ratio, ours, theirs = latency_ratio(bundle.path, "a", plain, rounds)
    bind, program, session = _loads(bundle, plain)
    return Row(
        name=case.name,
        megabytes=model.bytes / 1e6,
        mode=model.mode,
        inputs=sum(len(stage.weights) for stage in model.stages.values()),
        difference=result.relative,
        ratio=ratio,
        ratio_kept=_kept(case, folder, plain, rounds),
        gemel_ms=ours,
        plain_ms=theirs,
        bind_ms=bind,
        program_ms=program,
        plain_load_ms=session,
        compile_s=compile_s,
    )


def bundle_of(
    case: Case, folder: Path, convert: ConvertPrecision = lambda models, step: {}
) -> tuple[Workload, Bundle, float]:
    """Compile an architecture with random weights; return its workload, its bundle and the seconds of compilation.

    Args:
        case: architecture to compile.
        folder: folder for weights, workload and bundle.
        convert: function that converts the model to lower precision, as :func:`gemel.compiler.compile_workload` takes.
    """
    _weights(case, folder / "a.safetensors", 0)
    workload = _workload(case, folder, ["a"])
    began = perf_counter()
    report = compile_workload(workload, folder / "bundle", convert=convert)
    return workload, open_bundle(report.path), perf_counter() - began


def _kept(case: Case, folder: Path, plain: Path, rounds: int) -> float | None:
    """Return the CPU time of a run with unfolded BatchNorms, divided by that of a default session.

    BatchNorms stay unfolded because a second model shares every kernel. None if the model has no BatchNorm or the
    bundle shares nothing.
    """
    if not _has_batch_norm(folder / "a.safetensors"):
        return None
    _weights(case, folder / "b.safetensors", 1, kernels=folder / "a.safetensors")
    report = compile_workload(_workload(case, folder, ["a", "b"]), folder / "shared")
    if not report.shared.groups:
        return None
    return latency_ratio(report.path, "a", plain, rounds)[0]


def _loads(bundle: Bundle, plain: Path) -> tuple[float, float, float]:
    """Return the median milliseconds to bind a model whose program is loaded, to load its program, and to load a plain
    session of it."""
    binds, programs, sessions = [], [], []
    for _ in range(5):
        with OrtCpu(bundle, threads=1) as backend:
            began = perf_counter()
            backend.activate("a")
            programs.append((perf_counter() - began) * 1e3)
            backend.unbind("a")
            began = perf_counter()
            backend.activate("a")
            binds.append((perf_counter() - began) * 1e3)
        began = perf_counter()
        onnxruntime.InferenceSession(str(plain), providers=["CPUExecutionProvider"])
        sessions.append((perf_counter() - began) * 1e3)
    return median(binds), median(programs), median(sessions)


def _workload(case: Case, folder: Path, names: Sequence[str]) -> Workload:
    size = {"size": list(case.size)} if case.size else {}
    queries = [
        {
            "name": name,
            "feed": "none",
            "task": case.task,
            "model": {
                "factory": case.factory,
                "args": case.args,
                "weights": f"{name}.safetensors",
                "input": size,
            },
        }
        for name in names
    ]
    document = {"schema_version": "1", "feeds": {"none": {"source": "none.mp4"}}, "queries": queries}
    path = folder / "workload.yaml"
    path.write_text(json.dumps(document))  # JSON is YAML
    return load_workload(path)


def _build(case: Case) -> nn.Module:
    import importlib

    module, _, name = case.factory.partition(":")
    factory: Callable[..., nn.Module] = getattr(importlib.import_module(module), name)
    return factory(**case.args)


def _weights(case: Case, path: Path, seed: int, kernels: Path | None = None) -> None:
    """Write random weights of an architecture to a file; take all but BatchNorm from the file ``kernels``, if given."""
    torch.manual_seed(seed)
    module = _build(case)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d) or type(layer).__name__ == "FrozenBatchNorm2d":
            state = layer.state_dict()  # shares memory with the layer
            for value in ("running_mean", "bias"):
                state[value].uniform_(-0.1, 0.1)
            for value in ("running_var", "weight"):
                state[value].uniform_(0.5, 1.5)
    state = {name: value.contiguous() for name, value in module.state_dict().items()}
    if kernels is not None:
        from safetensors.torch import load_file

        norms = _batch_norms(set(state))
        state = {**load_file(kernels), **{name: value for name, value in state.items() if name in norms}}
    save_file({name: value.clone() for name, value in state.items()}, path)


def _batch_norms(names: set[str]) -> set[str]:
    layers = {name.removesuffix("running_mean") for name in names if name.endswith("running_mean")}
    return {name for name in names if f"{name.rpartition('.')[0]}." in layers}


def _has_batch_norm(path: Path) -> bool:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return bool(_batch_norms(set(file.keys())))


def write(rows: Sequence[Row]) -> None:
    """Write the figures of all architectures into docs/coverage.md as a Markdown table."""
    lines = [
        f"ONNX Runtime {onnxruntime.__version__}, torch {torch.__version__.partition('+')[0]}.",
        "",
        "| model | MB | mode | weights | difference | CPU time | kept | gemel ms | default ms | bind ms | program ms"
        " | session ms | compile s |",
        "|---|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        kept = f"{row.ratio_kept:.3f}" if row.ratio_kept is not None else "-"
        lines.append(
            f"| {row.name} | {row.megabytes:.1f} | {row.mode} | {row.inputs} | {row.difference:.1e} | {row.ratio:.3f}"
            f" | {kept} | {row.gemel_ms:.1f} | {row.plain_ms:.1f} | {row.bind_ms:.2f} | {row.program_ms:.1f}"
            f" | {row.plain_load_ms:.0f} | {row.compile_s:.1f} |"
        )
    write_between(DOC, "table", "\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="*", default=[], help="measure models whose names begin with one of these")
    parser.add_argument("--rounds", type=int, default=15, help="timed repetitions of each model")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(2)
    console = Console(highlight=False)
    PARTS.mkdir(parents=True, exist_ok=True)
    for case in CASES:
        part = PARTS / f"{case.name.split()[0]}.json"
        if arguments.only and not any(case.name.startswith(name) for name in arguments.only):
            continue
        with tempfile.TemporaryDirectory(prefix="gemel-coverage-") as folder:
            row = measure(case, Path(folder), arguments.rounds)
        part.write_text(json.dumps(asdict(row)))
        kept = f"{row.ratio_kept:.3f}" if row.ratio_kept is not None else "-"
        console.print(f"{row.name}: difference {row.difference:.1e}, CPU time {row.ratio:.3f}, kept {kept}")
    parts = [PARTS / f"{case.name.split()[0]}.json" for case in CASES]
    write([Row(**json.loads(part.read_text())) for part in parts if part.exists()])
    console.print(f"{DOC}")


if __name__ == "__main__":
    main()
