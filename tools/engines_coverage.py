"""Make the table in docs/engines.md: an engine of every architecture in docs/coverage.md, one row each.

    .venv/bin/python tools/engines_coverage.py [--only NAME ...] [--target sm86]

Engines are built and not run, so that no card is needed; TensorRT for RTX is.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import process_time

import torch
from coverage import CASES, Case, bundle_of
from documents import write_between
from rich.console import Console

from gemel.errors import BackendError
from gemel.runtime.engines.library import Library, find_library
from gemel.runtime.engines.store import build_engines

ROOT = Path(__file__).resolve().parent.parent
DOC = ROOT / "docs" / "engines.md"
PARTS = ROOT / "out" / "engines"


@dataclass(frozen=True)
class Row:
    name: str
    megabytes: float
    """Of weights."""
    programs: int
    inputs: int
    """Weights that are inputs of the programs."""
    engines_mb: float = 0.0
    layers: int = 0
    seconds: float = 0.0
    """CPU time that building them took."""
    refused: str | None = None
    on_cpu: str | None = None
    """Why a program without weights has no engine."""


def measure(case: Case, library: Library, target: str, folder: Path) -> Row:
    """Compile one architecture and build its engines."""
    _, bundle, _ = bundle_of(case, folder)
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


def table(rows: Sequence[Row], library: Library, target: str) -> str:
    """The rows as Markdown."""
    lines = [
        f"{library.backend} {library.version}, engines for {target}, random weights, made by",
        "`.venv/bin/python tools/engines_coverage.py`.",
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
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    library = find_library("tensorrt-rtx")
    console = Console(highlight=False)
    PARTS.mkdir(parents=True, exist_ok=True)
    parts = [PARTS / f"{case.name.split()[0]}.json" for case in CASES]
    for case, part in zip(CASES, parts, strict=True):
        if arguments.only and not any(case.name.startswith(name) for name in arguments.only):
            continue
        with tempfile.TemporaryDirectory(prefix="gemel-engines-") as folder:
            row = measure(case, library, arguments.target, Path(folder))
        part.write_text(json.dumps(asdict(row)))
        console.print(f"{row.name}: {row.refused or f'{row.engines_mb:.1f} MB in {row.seconds:.1f} s'}", markup=False)
    rows = [Row(**json.loads(part.read_text())) for part in parts if part.exists()]
    write_between(DOC, "table", table(rows, library, arguments.target))
    console.print(f"{DOC}")


if __name__ == "__main__":
    main()
