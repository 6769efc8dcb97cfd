"""Compare ``gemel-run --offline`` with a bare loop of PyAV and ONNX Runtime, by answers per second and CPU time.

    .venv/bin/python tools/bench_end_to_end.py [BUNDLE] [WORKLOAD.YAML] [--rounds 5] [--frames 200]

The bare loop is what one would write without gemel: a default ONNX Runtime session for each model, from the file that
PyTorch exports; PyAV decodes each feed; the same preprocessing and the same decoders; no budget, no queue, no output.
Both sides read the same frames and use the same number of threads, in turns. Start-up is not counted on either side:
CPU time is that of a run less that of a run of few frames.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import av
import no_telemetry  # noqa: F401
import onnxruntime
from documents import write_between
from numpy.typing import NDArray

from gemel.bundles.reader import open_bundle
from gemel.check.source.plain_export import export_plain
from gemel.frames.preprocess import preprocess
from gemel.frames.reference import package_file
from gemel.runtime.decode import DecodeContext, Decoder, build_decoder
from gemel.workload import load_workload

ROOT = Path(__file__).resolve().parent.parent
DOC = ROOT / "docs" / "operations.md"
BUNDLE = ROOT / "out" / "street" / "bundle"
WORKLOAD = ROOT / "examples" / "street" / "merged" / "workload.yaml"
BARE = "bare loop of PyAV and ONNX Runtime"
MEMORY = {"`gemel-run --offline`": "all", "`gemel-run --offline --memory 20MiB`": "20MiB"}
"""Name of a way to run the bundle -> its memory setting."""
FEW = 10
"""Number of frames of the run whose CPU time counts as start-up."""


def run_bare(bundle_path: Path, exports: Path, frames: int, threads: int) -> dict[str, float]:
    """Answer all queries on the first frames of each feed without gemel's runner, and return answers and times."""
    bundle = open_bundle(bundle_path)
    queries, models = bundle.manifest.queries, bundle.manifest.models
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    sessions = {
        name: onnxruntime.InferenceSession(str(exports / f"{name}.onnx"), options, providers=["CPUExecutionProvider"])
        for name in models
    }
    decoders: dict[str, Decoder] = {
        name: build_decoder(
            models[query.model].decode, DecodeContext(bundle.tensor, query.labels, query.threshold, query.classes)
        )
        for name, query in queries.items()
    }
    answered, began, cpu = 0, perf_counter(), process_time()
    for feed, spec in bundle.manifest.feeds.items():
        mine = {name: query for name, query in queries.items() if query.feed == feed}
        for image in _decoded(spec.source, frames, spec.fps):
            prepared: dict[Any, Any] = {}
            for name, query in mine.items():
                model = models[query.model]
                if model.input not in prepared:
                    prepared[model.input] = preprocess(image, model.input)
                pixels, geometry = prepared[model.input]
                session = sessions[query.model]
                values = session.run(None, {session.get_inputs()[0].name: pixels})
                ports = [port.name for port in model.stages["main"].outputs]
                decoders[name](dict(zip(ports, values, strict=True)), geometry, _no_stage)
                answered += 1
    return {"answers": answered, "seconds": perf_counter() - began, "cpu": process_time() - cpu}


def _decoded(source: str, count: int, fps: float | None) -> Any:
    """Yield the first frames of a recording at ``fps`` frames per second, BGR."""
    path = package_file(source) if source.startswith("package:") else Path(source)
    given, due = 0, 0.0
    while given < count:  # recordings of the example begin again at their end
        with av.open(str(path)) as container:
            container.streams.video[0].thread_type = "AUTO"
            start = None
            for frame in container.decode(video=0):
                start = frame.time if start is None else start
                if fps is not None and frame.time - start < due - 1e-6:
                    continue
                due += 0 if fps is None else 1 / fps
                yield frame.to_ndarray(format="bgr24")
                given += 1
                if given == count:
                    return
        due = 0.0


def _no_stage(stage: str, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    raise NotImplementedError("models with several stages are not part of this benchmark")


def run_gemel(bundle: Path, memory: str, frames: int, threads: int, folder: Path) -> dict[str, float]:
    """Run ``gemel-run --offline`` in a process of its own, and return its answers, seconds, and CPU seconds."""
    import resource

    summary = folder / "summary.json"
    command = [str(Path(sys.executable).parent / "gemel-run"), str(bundle), "--offline", "--frames", str(frames)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [*command, "--threads", str(threads), "--memory", memory, "--json", str(summary)],
        check=True,
        capture_output=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = json.loads(summary.read_text())
    return {
        "answers": sum(query["processed"] for query in found["queries"].values()),
        "seconds": found["seconds"],
        "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", nargs="?", type=Path, default=BUNDLE)
    parser.add_argument("workload", nargs="?", type=Path, default=WORKLOAD)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bare", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.bare is not None:
        print(json.dumps(run_bare(arguments.bundle, arguments.bare, arguments.frames, arguments.threads)))
        return
    with tempfile.TemporaryDirectory(prefix="gemel-end-to-end-") as name:
        folder = Path(name)
        export_plain(load_workload(arguments.workload), folder)
        names = (BARE, *MEMORY)
        rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
        for turn in range(arguments.rounds + 1):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                rate, cost = _measured(name, arguments, folder)
                if turn:  # the first turn warms up caches
                    rounds[name].append((rate, cost))
                print(f"{name}: {rate:.1f} answers per second, {cost:.2f} ms of CPU time each", flush=True)
    lines = [
        f"{arguments.frames} frames of each feed, {arguments.threads} thread a run, medians of {arguments.rounds}"
        f" rounds in turns, ONNX Runtime {onnxruntime.__version__}. Ratios are beside the bare loop.",
        "",
        "| | answers per second | ratio | ms of CPU time per answer | ratio |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, found in rounds.items():
        faster = median(ours / theirs for (ours, _), (theirs, _) in zip(found, rounds[BARE], strict=True))
        dearer = median(ours / theirs for (_, ours), (_, theirs) in zip(found, rounds[BARE], strict=True))
        rate, cost = median(each for each, _ in found), median(each for _, each in found)
        lines.append(f"| {name} | {rate:.1f} | {faster:.3f} | {cost:.2f} | {dearer:.3f} |")
    print("\n".join(lines))
    write_between(DOC, "end-to-end", "\n".join(lines))


def _measured(name: str, arguments: argparse.Namespace, folder: Path) -> tuple[float, float]:
    """Run the bundle in one way, and return answers per second and milliseconds of CPU time per answer."""
    if name == BARE:
        found = _bare_process(arguments, folder)
        return found["answers"] / found["seconds"], found["cpu"] / found["answers"] * 1e3
    run = partial(run_gemel, arguments.bundle, MEMORY[name], threads=arguments.threads, folder=folder)
    few, many = run(frames=FEW), run(frames=arguments.frames)
    cost = (many["cpu"] - few["cpu"]) / (many["answers"] - few["answers"])
    return many["answers"] / many["seconds"], cost * 1e3


def _bare_process(arguments: argparse.Namespace, exports: Path) -> dict[str, float]:
    """Run the bare loop in a process of its own, as ``gemel-run`` is."""
    command = [sys.executable, __file__, str(arguments.bundle), "--bare", str(exports)]
    limits = ["--frames", str(arguments.frames), "--threads", str(arguments.threads)]
    done = subprocess.run([*command, *limits], check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    main()
