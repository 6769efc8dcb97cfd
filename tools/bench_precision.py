"""Measure cost and gain of int8 and fp16: bytes, accuracy and sharing of a merged workload, run times on this CPU.

    .venv/bin/python tools/bench_precision.py [MERGED/workload.yaml] [--only NAME ...]

The workload is one that ``gemel merge`` wrote, with its images. Without a workload only run times are measured: CPU
time of one thread, all sides in turn, for architectures with random weights that are calibrated on frames of a street.
The tables are written into docs/precision.md.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import no_telemetry  # noqa: F401
import numpy as np
import onnx
import onnxruntime as ort
import torch
from documents import write_between
from engines_coverage import frames_for, to_int8
from model_coverage import CASES, Case, bundle_of
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from rich.console import Console

from gemel.bundles.manifest import Precision
from gemel.bundles.merged_tensors import merged_tensors
from gemel.bundles.reader import Bundle, open_bundle
from gemel.calib.ranges import METHODS, Method
from gemel.calib.record import CALIBRATION, Calibration, read_calibration
from gemel.calib.request import PrecisionSettings
from gemel.check.contents.inspect import sizes
from gemel.check.source.plain_export import export_plain
from gemel.cli.precision import PrecisionConverter
from gemel.compiler import compile_workload
from gemel.runtime.backends.ort_cpu import OrtCpu
from gemel.runtime.ort.copy_times import cpu_times
from gemel.runtime.ort.session import open_session, quiet
from gemel.workload import load_workload

ROOT = Path(__file__).resolve().parent.parent
DOC = ROOT / "docs" / "precision.md"
NAMES = ("resnet18", "resnet50", "alexnet", "vgg16", "mobilenet_v2", "efficientnet_b0", "densenet121", "yolov3_tiny")


class _Frames(CalibrationDataReader):  # type: ignore[misc]
    """Reader that hands frames to ONNX Runtime's calibrators."""

    def __init__(self, port: str, frames: Sequence[NDArray[np.float32]]) -> None:
        self._inputs: Iterator[dict[str, NDArray[np.float32]]] = ({port: frame} for frame in frames)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        return next(self._inputs, None)


def compiled(path: Path, folder: Path, precision: Precision, method: Method) -> Bundle:
    """Compile a merged workload in one precision, and open the bundle."""
    workload, output = load_workload(path), folder / precision
    converter = PrecisionConverter(workload, output, precision, method)
    return open_bundle(compile_workload(workload, output, convert=converter).path)


def bytes_table(bundles: Mapping[Precision, Bundle]) -> str:
    """Return a table of bytes and sharing of one workload in several precisions."""
    whole = sizes(bundles["fp32"])["unique"]
    lines = ["| | unique bytes | of fp32 | merged tensors that are one | in |", "|---|--:|--:|--:|---|"]
    for name, bundle in bundles.items():
        found, unique = list(merged_tensors(bundle)), sizes(bundle)["unique"]
        one = [each for each in found if each.copies == 1]
        kinds = ", ".join(sorted({dtype for each in one for dtype in each.dtypes}))
        lines.append(f"| {name} | {unique:,} | {unique / whole:.3f} | {len(one)} of {len(found)} | {kinds} |")
    return "\n".join(lines)


def accuracy_table(records: Sequence[Calibration]) -> str:
    """Return a table of every query's accuracy in float32 and in lower precision."""
    lines = [
        "| query | as | fp32 | now | of fp32 | at least | images |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for record in records:
        for name, query in record.queries.items():
            lines.append(
                f"| {name} | {query.precision} | {query.fp32:.2%} | {query.accuracy:.2%}"
                f" | {query.accuracy / query.fp32:.4f} | {query.floor:.2%} | {query.images} |"
            )
    return "\n".join(lines)


def write_static_int8(plain: Path, made: Path, frames: Sequence[NDArray[np.float32]]) -> None:
    """Let ONNX Runtime's own tool quantize a float32 file to int8, with a scale for each channel of a kernel."""
    with tempfile.TemporaryDirectory(prefix="gemel-precision-") as folder:
        ready = Path(folder) / "ready.onnx"
        quant_pre_process(str(plain), str(ready), skip_symbolic_shape=True)
        quantize_static(
            str(ready),
            str(made),
            _Frames(onnx.load(str(ready)).graph.input[0].name, frames),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )


def times(case: Case, folder: Path) -> str:
    """Measure the run times of one architecture in several forms, and return them as a row of a Markdown table.

    The forms are float32 and static int8 in plain ONNX Runtime, and float32 and int8 in gemel.
    """
    workload, bundle, _ = bundle_of(case, folder, to_int8)
    spec = bundle.manifest.models["a"]
    frames = frames_for(spec.input)
    plain = export_plain(workload, folder)["a"]
    static_int8 = folder / "quantised.onnx"
    write_static_int8(plain, static_int8, frames)
    port = spec.stages["main"].inputs[0].name
    sessions = [open_session(path, quiet(threads=1)) for path in (plain, static_int8)]
    (folder / "fp32").mkdir()
    fp32_bundle = bundle_of(case, folder / "fp32")[1]
    with OrtCpu(fp32_bundle, threads=1) as fp32, OrtCpu(bundle, threads=1) as int8:
        runs = [partial(session.run, None, {port: frames[0]}) for session in sessions]
        for backend in (fp32, int8):
            backend.activate("a")
            runs.append(partial(backend.run, "a", "main", {port: frames[0]}))
        default, static, bound, chosen = cpu_times(runs)
        mode, copy = int8.modes["a"], int8.baked.packings["a"]
    return (
        f"| {case.name} | {default:.1f} | {static:.1f} | {bound:.1f} | {chosen:.1f} | {chosen / bound:.2f} | {mode}"
        f" | {copy.packed_ms / copy.bound_ms:.2f} | {copy.bytes / 1e6:.1f} of {spec.bytes * 4 / 1e6:.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("workload", nargs="?", type=Path, help="workload.yaml that gemel merge wrote")
    parser.add_argument("--ranges", choices=METHODS, default=PrecisionSettings().method)
    parser.add_argument("--only", nargs="*", default=NAMES, help="architectures whose run times are measured")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(highlight=False)
    if arguments.workload is not None:
        with tempfile.TemporaryDirectory(prefix="gemel-precision-") as folder:
            precisions: tuple[Precision, ...] = ("fp32", "fp16", "int8")
            bundles = {name: compiled(arguments.workload, Path(folder), name, arguments.ranges) for name in precisions}
            write_between(DOC, "bytes", bytes_table(bundles))
            records = [read_calibration(bundles[name].file(CALIBRATION)) for name in ("fp16", "int8")]
            write_between(DOC, "accuracy", accuracy_table(records))
    rows = []
    for case in CASES:
        if case.name in arguments.only:
            with tempfile.TemporaryDirectory(prefix="gemel-precision-") as folder:
                rows.append(times(case, Path(folder)))
            console.print(rows[-1], markup=False)
    head = [
        "| model | default ms | quantize_static ms | gemel fp32 ms | gemel int8 ms | int8 / fp32 | mode"
        " | packed / bound | private MB of fp32 MB |",
        "|---|--:|--:|--:|--:|--:|---|--:|--:|",
    ]
    if rows:
        write_between(DOC, "times", "\n".join([f"ONNX Runtime {ort.__version__}.", "", *head, *rows]))
    console.print(f"{DOC}")


if __name__ == "__main__":
    main()
