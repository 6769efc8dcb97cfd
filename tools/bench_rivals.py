"""Compare gemel with the strongest settings of ONNX Runtime and OpenVINO on a CPU; write docs/benchmarks.md's tables.

    .venv/bin/python tools/bench_rivals.py [--rounds 40] [--starts 3] [--model resnet18] [--only street]

Two workloads: the street example (trained weights; tools/make_street_example.py makes its files), and eight ResNets
with different random weights, because neither memory nor times depend on training. All ways are in
``tools/rival_ways.py``. Run times are measured in one process, in an order that is shuffled every round. Memory and
loads are measured in processes of their own, one after the other, in rounds.

Int8 files are calibrated on a few frames of a street, and no accuracy is judged. The accuracy of the street example in
bf16 is measured first, so that ``auto-cpu`` uses bf16 only for models that keep it. For random weights there is
nothing to measure, and bf16 is accepted unseen.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import no_telemetry  # noqa: F401
import onnx
import onnx_ir as ir
import onnxruntime
from bench_cpu import STREET, eight_resnets
from bench_precision import write_static_int8
from documents import write_between
from engines_coverage import frames_for, to_int8
from rival_ways import WAYS

from gemel.bundles.reader import Bundle, open_bundle
from gemel.calib.opset import raised
from gemel.check.evaluation.accept import measure_bf16
from gemel.check.evaluation.reference import OfflineSettings
from gemel.check.source.plain_export import export_plain
from gemel.compiler import compile_workload
from gemel.runtime.ort.bake import cpu_flags
from gemel.runtime.ov.accepted import Acceptance, QueryAgreement, write_acceptance
from gemel.runtime.ov.openvino_cpu import openvino_version
from gemel.workload import load_workload

ROOT = Path(__file__).resolve().parent.parent
DOC = ROOT / "docs" / "benchmarks.md"
FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
"""Features of a CPU by which the run times of these ways differ."""


def prepare(workload_path: Path, at: Path) -> None:
    """Write the files of all ways below a folder: bundles, plain exports, and the bundles' own files."""
    workload = load_workload(workload_path)
    bundle = open_bundle(compile_workload(workload, at / "gemel").path)
    int8 = open_bundle(compile_workload(workload, at / "gemel-int8", convert=to_int8).path)
    for source, names in (("gemel", ("gemel-auto", "gemel-bf16", "judged")), ("gemel-int8", ("gemel-int8-auto",))):
        for name in names:
            shutil.copytree(at / source, at / name)
    # Judging makes caches that no way needs, so it is done in another copy of the bundle.
    unseen = {name: QueryAgreement(agreement=1.0, frames=0) for name in bundle.manifest.queries}
    found = Acceptance(bundle=bundle.id, queries=unseen)
    if workload_path == STREET:
        found = measure_bf16(open_bundle(at / "judged"), OfflineSettings(frames=100, threads=1))
    write_acceptance(open_bundle(at / "gemel-bf16"), found)
    shutil.rmtree(at / "judged")
    for name in ("plain", "own", "own-int8", "optimised", "static-int8"):
        (at / name).mkdir()
    export_plain(workload, at / "plain")
    for each, name in ((bundle, "own"), (int8, "own-int8")):
        own_files(each, at / name)
    for name in bundle.manifest.models:
        plain, static = at / "plain" / f"{name}.onnx", at / f"{name}.onnx"
        optimise(plain, at / "optimised")
        write_static_int8(
            raised_file(plain, at / "raised.onnx"), static, frames_for(bundle.manifest.models[name].input)
        )
        optimise(static, at / "static-int8")


def own_files(bundle: Bundle, folder: Path) -> None:
    """Put the ONNX files of a bundle's models into a folder, for one image a run, beside the blob that they share."""
    blob = bundle.file(bundle.manifest.blob)
    os.link(blob, folder / blob.name)
    for name, model in bundle.manifest.models.items():
        proto = onnx.load(str(bundle.file(model.stages["main"].file)), load_external_data=False)
        batch = proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param
        for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
            for size in value.type.tensor_type.shape.dim:
                if batch and size.dim_param == batch:
                    size.dim_value = 1
        onnx.save(proto, str(folder / f"{name}.onnx"))


def raised_file(path: Path, made: Path) -> Path:
    """Write a file with ONNX operators that can be quantized by channels, and return it."""
    ir.save(raised(ir.load(path)), made)
    return made


def optimise(path: Path, folder: Path) -> None:
    """Let ONNX Runtime optimise a file for this CPU, and write the result with its weights in a file beside it."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / path.name)
    options.log_severity_level = 4
    key = "session.optimized_model_external_initializers"
    options.add_session_config_entry(f"{key}_file_name", f"{path.stem}.bin")
    options.add_session_config_entry(f"{key}_min_size_in_bytes", "1024")
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def apart(*arguments: object) -> Any:
    """Measure in a process of its own, and return what it found."""
    command = [sys.executable, str(Path(__file__).with_name("rival_ways.py")), *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measured(at: Path, rounds: int, starts: int, most: int) -> list[str]:
    """Measure all ways of a workload, and return the rows of their table.

    Args:
        at: folder that :func:`prepare` has filled.
        rounds: number of timed runs of each model.
        starts: number of processes of each way after the first, which makes the caches.
        most: number of models whose runs are timed.
    """
    first = {name: apart(at, name)["memory_mb"] for name in WAYS}
    found: dict[str, list[Mapping[str, Any]]] = {name: [] for name in WAYS}
    for _ in range(starts):
        for name in WAYS:
            found[name].append(apart(at, name))
    rows = []
    for name, (run_ms, ratio) in apart(at, "runs", rounds, most).items():
        each = found[name]
        load, warm, cold = (
            median(time for one in each for time in one[key]) for key in ("load_ms", "warm_ms", "cold_ms")
        )
        memory = median(one["memory_mb"] for one in each)
        rows.append(
            f"| {name} | {run_ms:.2f} | {ratio:.2f} | {load:.3g} | {warm:.3g} | {cold:.3g} | {memory:.0f}"
            f" | {first[name]:.0f} | {each[0]['disk_mb']:.0f} |"
        )
        print(rows[-1], flush=True)
    return rows


def write(block: str, rows: Sequence[str]) -> None:
    """Write the table of a workload and its conditions into a block of docs/benchmarks.md."""
    head = "| way | CPU ms of a run | ratio | load ms | first answer ms, warm | cold | memory MB | at first start MB"
    write_between(DOC, block, "\n".join([conditions(), "", f"{head} | disk MB |", "|---|" + "--:|" * 8, *rows]))


def conditions() -> str:
    """Return a sentence about the machine."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    features = [each for each in FEATURES if each in cpu_flags().split()]
    return (
        f"{platform.machine()}, {model} with {', '.join(features)}; one thread; ONNX Runtime {onnxruntime.__version__},"
        f" OpenVINO {openvino_version().partition('-')[0]}. The machine's {os.cpu_count()} cores had a load of"
        f" {os.getloadavg()[2]:.1f} on average in the last 15 minutes of the measurement, 1 of it the measurement."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=40, help="timed runs of each model in each way")
    parser.add_argument(
        "--starts", type=int, default=3, help="processes of each way whose memory and loads are measured"
    )
    parser.add_argument("--model", default="resnet18", help="torchvision's name of the eight models")
    parser.add_argument("--only", choices=("street", "eight"), help="measure one of the two workloads")
    arguments = parser.parse_args()
    for block, timed in (("street", 3), ("eight", 1)):
        if arguments.only in (None, block):
            with tempfile.TemporaryDirectory(prefix="gemel-rivals-") as name:
                folder = Path(name)
                path = STREET if block == "street" else eight_resnets(folder / "weights", 8, arguments.model)
                prepare(path, folder)
                write(f"rivals-{block}", measured(folder, arguments.rounds, arguments.starts, timed))
    print(DOC)


if __name__ == "__main__":
    main()
