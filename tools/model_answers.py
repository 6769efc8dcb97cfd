"""Compile models that people deploy, compare their answers on real frames, and write the table of docs/coverage.md.

    make model-answers
    .venv-coverage/bin/python tools/model_answers.py [--only NAME ...] [--part answers int8 times] [--rounds 15]

Each model is compiled, run on 20 frames, and compared with the model itself and with its own library. Models with
random weights have a fixed seed; the table marks them. What was measured is kept in out/coverage, a file a model and
part, so that times can be measured by themselves on an idle machine.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import tempfile
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import no_telemetry  # noqa: F401
import torch
from answer_table import FRAMES, summary, table
from coverage_cases import CASES
from coverage_cases.case import Answer, Case, Query
from documents import joined_rows, write_between
from rich.console import Console

from gemel.bundles.reader import Bundle, open_bundle
from gemel.calib.record import CALIBRATION, read_calibration
from gemel.calib.request import PrecisionSettings
from gemel.check.bench.bench import latency_ratio
from gemel.check.source.feed_frames import read_feed_frames
from gemel.check.source.numerics import compare_with_source
from gemel.check.source.plain_export import export_plain
from gemel.check.source.result_match import AnswerMatch, match_answers
from gemel.cli.precision import PrecisionConverter
from gemel.compiler import compile_workload
from gemel.errors import GemelError
from gemel.runtime.decode.agreement import SURE
from gemel.runtime.loop.bundle_session import BundleSession
from gemel.workload import Workload, load_workload

ROOT = Path(__file__).resolve().parent.parent
DOC = ROOT / "docs" / "coverage.md"
PARTS = ROOT / "out" / "coverage"
MARGIN = 0.01
"""Minimum excess of an object's score over the threshold for which gemel and the library must both find the object.
Rounding may take objects with a lower score below the threshold."""

Figures = dict[str, Any]


def measure_answers(case: Case, folder: Path) -> Figures:
    """Compile a model, and compare its answers with those of the source model and of the model's own library.

    Returns:
        Figures for the table; only ``refused`` if the model cannot be compiled.
    """
    query = case.prepare(folder)
    workload = _workload(folder, case.source(folder), {"a": query})
    try:
        report = compile_workload(workload, folder / "bundle")
    except GemelError as error:
        return {"refused": str(error).replace(f"{folder}/", "")}
    bundle = open_bundle(report.path)
    model = bundle.manifest.models["a"]
    (compared,) = compare_with_source(bundle, workload, rtol=1e-3, atol=1e-5)
    figures: Figures = {
        "task": bundle.manifest.queries["a"].task,
        "decoder": bundle.manifest.models["a"].decode.kind,
        "megabytes": model.bytes / 1e6,
        "mode": model.mode,
        "difference": compared.relative,
        "passed": compared.passed,
        "reason": compared.reason,
        "source": str(compared.answers) if compared.answers is not None else None,
    }
    if case.answers is not None:
        match = _library(case.answers(folder), bundle, workload, query)
        figures |= {
            "parts": match.parts,
            "kind": match.kind,
            "overlap": match.overlap,
            "score": match.score,
            "different": match.different,
        }
    if case.sibling is not None:
        figures |= _shared(case, folder, workload, query)
    return figures


def _library(answer: Answer, bundle: Bundle, workload: Workload, query: Query) -> AnswerMatch:
    """Compare a bundle's answers with those of the model's own library, on frames of the feed."""
    frames = read_feed_frames(workload, "feed", FRAMES)
    if frames.is_noise:
        raise ValueError(f"no frames: {frames.words}")
    floor = float(query.get("threshold", SURE)) + MARGIN
    with BundleSession(bundle) as session:
        matches = [match_answers(session.answer("a", image), answer(image), floor) for image in frames.images]
    joined = matches[0]
    for match in matches[1:]:
        joined = joined.joined(match)
    return joined


def _shared(case: Case, folder: Path, workload: Workload, query: Query) -> Figures:
    """Compile a model together with its sibling, and return the fraction of the sibling's bytes that both share."""
    assert case.sibling is not None
    both = _workload(folder, workload.feeds["feed"].source, {"a": query, "b": case.sibling(folder)})
    report = compile_workload(both, folder / "both")
    nearly = report.nearly_equal.bytes / 1e6 if report.nearly_equal is not None else 0.0
    bundle = open_bundle(folder / "both")
    tensors = {name: set(model.weights) for name, model in bundle.manifest.models.items()}
    if "b" not in tensors:  # one model for both queries
        return {"shared": 1.0, "sibling_mb": bundle.manifest.models["a"].bytes / 1e6}
    common = sum(bundle.manifest.tensors[name].length for name in tensors["a"] & tensors["b"])
    whole = bundle.manifest.models["b"].bytes
    return {"shared": common / whole, "sibling_mb": whole / 1e6, "nearly_mb": nearly}


def measure_int8(case: Case, folder: Path) -> Figures:
    """Compile a model in int8, calibrated and judged on frames of the feed, and return its accuracy and size."""
    if case.float_only:
        return {"int8": case.float_only}
    workload = _workload(folder, case.source(folder), {"a": case.prepare(folder)})
    output = folder / "int8"
    converter = PrecisionConverter(workload, output, "int8", PrecisionSettings().method)
    try:
        compile_workload(workload, output, convert=converter)
        record = read_calibration(output / CALIBRATION)
    except GemelError as error:
        return {"int8": str(error).replace(f"{folder}/", "")}
    if "a" in record.refused:
        return {"int8": record.refused["a"]}
    found = record.queries["a"]
    return {
        "agreement": found.accuracy / found.fp32 if found.fp32 else 0.0,
        "bytes": found.bytes / found.fp32_bytes,
        "kept": len(record.kept),
    }


def measure_times(case: Case, folder: Path, rounds: int) -> Figures:
    """Measure the CPU time of a model's run on one thread, and that of a default session of its source file."""
    workload = _workload(folder, case.source(folder), {"a": case.prepare(folder)})
    try:
        report = compile_workload(workload, folder / "bundle")
    except GemelError as error:
        return {"refused": str(error)}
    plain = export_plain(workload, folder)["a"]
    ratio, ours, theirs = latency_ratio(report.path, "a", plain, rounds)
    return {"ratio": ratio, "gemel_ms": ours, "plain_ms": theirs}


def _workload(folder: Path, source: str, queries: Mapping[str, Query]) -> Workload:
    document = {
        "schema_version": "1",
        "feeds": {"feed": {"source": source}},
        "queries": [{"name": name, "feed": "feed", **query} for name, query in queries.items()],
    }
    path = folder / "workload.yaml"
    path.write_text(json.dumps(document))  # JSON is YAML
    return load_workload(path)


def _measured(cases: Sequence[Case]) -> list[tuple[Case, Figures]]:
    """Return the figures of each model of which something was measured, joined from all its parts."""
    found = []
    for case in cases:
        figures: Figures = {}
        for part in ("answers", "int8", "times"):
            path = _part(case, part)
            figures |= json.loads(path.read_text()) if path.exists() else {}
        if figures:
            found.append((case, figures))
    return found


def _part(case: Case, part: str) -> Path:
    return PARTS / f"{case.name.replace('/', '-').replace(' ', '_')}.{part}.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="*", default=[], help="measure models whose names begin with one of these")
    parser.add_argument("--part", nargs="*", choices=("answers", "int8", "times"), default=["answers", "int8", "times"])
    parser.add_argument("--rounds", type=int, default=15, help="timed repetitions of each model")
    parser.add_argument("--missing", action="store_true", help="measure only what has not been measured")
    parser.add_argument("--summary", action="store_true", help="measure nothing; write the table again")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(2)
    console = Console(highlight=False, soft_wrap=True)
    PARTS.mkdir(parents=True, exist_ok=True)
    measures: dict[str, Callable[[Case, Path], Figures]] = {
        "answers": measure_answers,
        "int8": measure_int8,
        "times": lambda case, folder: measure_times(case, folder, arguments.rounds),
    }
    chosen = [
        case for case in CASES if not arguments.only or any(case.name.startswith(name) for name in arguments.only)
    ]
    for case in [] if arguments.summary else chosen:
        for part in arguments.part:
            if arguments.missing and _part(case, part).exists():
                continue
            with tempfile.TemporaryDirectory(prefix="gemel-coverage-") as folder:
                try:
                    figures = measures[part](case, Path(folder))
                except Exception:
                    console.print(f"{case.name}: {part} failed", style="red")
                    traceback.print_exc()
                    continue
            _part(case, part).write_text(json.dumps(figures))
            console.print(f"{case.name}: {part}: {figures}", markup=False)
            gc.collect()
    measured = _measured(CASES)
    if all(_part(case, "answers").exists() for case in CASES):  # of a part of them, the summary would not be true
        write_between(DOC, "summary", summary(measured))
    write_between(DOC, "models", joined_rows(DOC.read_text(), "models", table(measured)))
    console.print(f"{DOC}")


if __name__ == "__main__":
    main()
