"""Measure OpenVINO's CPU plugin beside ort-cpu: CPU time of a run in each precision, accuracy of bf16, and auto-cpu.

    .venv/bin/python tools/bench_openvino.py BUNDLE [--int8 BUNDLE] [--rounds 30] [--frames 300] [--block NAME]

Both bundles are of one workload, whose feeds are recordings; the second was compiled with ``--precision int8``. All
forms of a model run in turn on one thread and on one image of noise. Times are medians of the thread's CPU time.

The accuracy of bf16 is measured as ``gemel eval --accept bf16`` does, and kept in the device caches of the bundles, so
that ``auto-cpu`` may use bf16. It stands beside the fastest form that keeps the targets of all queries of the model:
float32, bf16 if it does, and int8 in the bundle that was compiled so. The table is written into docs/benchmarks.md, in
the block that ``--block`` names.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from time import thread_time
from typing import Any

import no_telemetry  # noqa: F401
import onnxruntime
from documents import write_between
from numpy.typing import NDArray

from gemel.bundles.manifest import Stage
from gemel.bundles.program import read_model, split_model
from gemel.bundles.reader import Bundle, open_bundle
from gemel.check.evaluation.accept import measure_bf16
from gemel.check.evaluation.reference import OfflineSettings
from gemel.runtime.backends import Backend, open_backend
from gemel.runtime.ort.trial_run import noise_inputs
from gemel.runtime.ov.accepted import Acceptance, write_acceptance
from gemel.runtime.ov.openvino_cpu import OvProgram, compile_program, openvino_version
from gemel.runtime.timing import medians

ROOT = Path(__file__).resolve().parent.parent
DOC = ROOT / "docs" / "benchmarks.md"
_WARM_UP = 3


def activated(stack: ExitStack, bundle: Bundle, backend: str, model: str) -> Backend:
    """Open a backend on one thread with all memory, and make a model ready to run."""
    opened = stack.enter_context(open_backend(bundle, backend, memory="all", threads=1))
    opened.activate(model)
    return opened


def with_weights_as_inputs(bundle: Bundle, stage: Stage) -> tuple[OvProgram, Mapping[str, NDArray[Any]]]:
    """Compile a stage for one image with all weights as inputs; return the program, and the weights by input name."""
    from openvino import Core

    program = split_model(read_model(bundle.file(stage.file).read_bytes()))
    core = Core()
    model = core.read_model(program.proto, b"")
    ports = [port.any_name for port in model.inputs]
    own = [port.name for port in stage.inputs]
    weights = dict(zip((name for name in ports if name not in own), stage.weights, strict=True))
    model.reshape({port.name: [1 if isinstance(size, str) else size for size in port.shape] for port in stage.inputs})
    settings = {"NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    return OvProgram(core.compile_model(model, "CPU", settings)), {
        name: bundle.tensor(tensor) for name, tensor in weights.items()
    }


def row(bundle: Bundle, int8: Bundle | None, model: str, rounds: int, known: dict[str, Acceptance]) -> str:
    """Measure all forms of a model in turn, and return them as a row of a Markdown table.

    Args:
        bundle: bundle in float32.
        int8: bundle of the same workload in int8.
        model: name of the model.
        rounds: number of timed runs of each form.
        known: id of a bundle -> agreement of its queries in bf16.
    """
    stage = bundle.manifest.models[model].stages["main"]
    inputs = noise_inputs(stage)
    forms = [(bundle, name) for name in ("ort-cpu", "openvino", "openvino-fast")]
    if int8 is not None:
        forms += [(int8, name) for name in ("ort-cpu", "openvino")]
    forms += [(each, "auto-cpu") for each in (bundle, int8) if each is not None]
    with ExitStack() as stack:
        runs: list[Callable[[], object]] = [
            partial(activated(stack, each, name, model).run, model, "main", inputs) for each, name in forms
        ]
        bound, weights = with_weights_as_inputs(bundle, stage)
        between = partial(bound.run, {**inputs, **weights})
        # A form that follows a like one finds its code and the CPU's units awake, so all follow the same other one.
        mixed = [each for run in runs for each in (between, run)]
        times = medians(mixed, thread_time, warm_up=_WARM_UP, rounds=rounds)
    first, inputs_ms, found = times[1], times[0], dict(zip(forms, times[1::2], strict=True))
    # A model of the int8 bundle kept its targets when it was compiled, or has stayed in float32.
    kept = {bundle: ["ort-cpu", "openvino"], int8: ["ort-cpu", "openvino"]}
    if model in known[bundle.id].models(bundle):
        kept[bundle].append("openvino-fast")
    cells = [_beside(found[bundle, name], first) for name in ("openvino", "openvino-fast")]
    cells.append(_agreement(bundle, model, known[bundle.id]))
    cells += [_beside(found[int8, name], first) if int8 is not None else "" for name in ("ort-cpu", "openvino")]
    for each in (bundle, int8):
        best = 0.0 if each is None else min(found[each, name] for name in kept[each])
        cells.append("" if each is None else _beside(found[each, "auto-cpu"], best))
    return f"| {model} | {first:.2f} | {' | '.join([*cells, _beside(inputs_ms, first)])} |"


def _beside(time: float, other: float) -> str:
    """Return milliseconds, and in brackets their ratio to other milliseconds."""
    return f"{time:.2f} ({time / other:.2f})"


def _agreement(bundle: Bundle, model: str, known: Acceptance) -> str:
    """Return the agreement in bf16 of each query of a model, with the number of frames."""
    queries = {name: each for name, each in known.queries.items() if bundle.manifest.queries[name].model == model}
    return ", ".join(
        f"{'none' if each.agreement is None else f'{each.agreement:.4f}'} of {each.frames}" for each in queries.values()
    )


def default_precision(bundle: Bundle) -> str:
    """Return the precision that OpenVINO chooses on this CPU."""
    stage = next(iter(bundle.manifest.models.values())).stages["main"]
    return compile_program(bundle.file(stage.file), stage, 1, "default").precision


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", type=Path, help="bundle in float32")
    parser.add_argument("--int8", type=Path, help="bundle of the same workload in int8")
    parser.add_argument("--rounds", type=int, default=30, help="timed runs of each form")
    parser.add_argument("--frames", type=int, default=300, help="most frames of each feed for the accuracy of bf16")
    parser.add_argument("--block", default="openvino", help="block of docs/benchmarks.md that the table replaces")
    arguments = parser.parse_args()
    bundle = open_bundle(arguments.bundle)
    int8 = None if arguments.int8 is None else open_bundle(arguments.int8)
    known = {}
    for each in filter(None, (bundle, int8)):
        known[each.id] = measure_bf16(each, OfflineSettings(frames=arguments.frames, threads=1))
        write_acceptance(each, known[each.id])
    lines = [
        f"OpenVINO {openvino_version()}, ONNX Runtime {onnxruntime.__version__}. `openvino-fast` computes in"
        f" {default_precision(bundle)} on this CPU. Milliseconds of CPU time, and in brackets the ratio to `ort-cpu`;"
        " of `auto-cpu` the ratio to the fastest form before it that keeps the targets. Agreement of bf16 with float32,"
        " and frames, for each query of the model.",
        "",
        "| model | ort-cpu | openvino (f32) | openvino-fast | agreement | ort-cpu, int8 | openvino, int8 | auto-cpu"
        " | auto-cpu, int8 | weights as inputs |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for model in bundle.manifest.models:
        lines.append(row(bundle, int8, model, arguments.rounds, known))
        print(lines[-1])
    write_between(DOC, arguments.block, "\n".join(lines))
    print(DOC)


if __name__ == "__main__":
    main()
