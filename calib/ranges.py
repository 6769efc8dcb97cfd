"""Measurement of the value ranges of activations on real frames, with onnxruntime.quantization."""

from __future__ import annotations

import contextlib
import io
import math
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import LiftConstantsToInitializersPass
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, create_calibrator

from ..errors import CalibrationError
from ..runtime.ort.session import open_session, quiet, usual_threads

__all__ = ["METHODS", "CalibrationFrame", "Method", "peaks_of", "too_large"]

CalibrationFrame = NDArray[np.float32]
"""One image, preprocessed as the input of a model, ``[1, C, height, width]`` float32."""
Method = Literal["min-max", "entropy", "percentile"]
"""Method that chooses the range of a value from its measured numbers; :func:`peaks_of` describes each method."""
METHODS: tuple[Method, ...] = get_args(Method)

_METHODS = {
    "min-max": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}
_MOST_FLOAT16 = float(np.finfo(np.float16).max) / 2
"""Largest measured absolute value for which a value may be converted to float16.

This is half of the largest float16 number, because other frames may have larger values.
"""
_AT_ONCE = 4
"""Maximum number of frames whose activations are in memory at once; a ResNet-50 has 100 MB of them per frame."""


class _Frames(CalibrationDataReader):  # type: ignore[misc]
    """Adapter that passes frames to a calibrator of ONNX Runtime, one at a time."""

    def __init__(self, name: str, frames: Iterable[CalibrationFrame]) -> None:
        self._inputs = ({name: frame} for frame in frames)

    def get_next(self) -> dict[str, CalibrationFrame] | None:
        return next(self._inputs, None)


def peaks_of(
    model: ir.Model, names: Sequence[str], frames: Sequence[CalibrationFrame], method: Method
) -> dict[str, float]:
    """Measure the largest absolute values of a graph's activations on frames.

    Methods: ``min-max`` takes the largest absolute value that occurred. ``percentile`` takes the absolute value that
    99.999 % of the numbers do not exceed. ``entropy`` takes the range with the smallest Kullback-Leibler divergence
    between the numbers before and after quantization, with ONNX Runtime's default number of bins. With so few bins,
    ``entropy`` seldom cuts off any number. (With 2,048 bins, the method takes 0.5 s per value and cuts off too much:
    the accuracy of ResNets on CIFAR-10 fell from 87 % to 26 %.)

    Args:
        model: a float32 graph with one input.
        names: names of the values to measure.
        frames: real frames to run the graph on.
        method: method that chooses each range.

    Returns:
        Value name -> the largest absolute value that int8 must represent.

    Raises:
        CalibrationError: there are no frames, a frame does not have the size of the graph's input, or a value is not
            finite, or is one constant on all frames.
    """
    what = f"model {model.graph.name}"
    port = model.graph.inputs[0]
    _check_frames(what, port, frames)
    extents = _extents(what, model, names, frames)
    for name in names:
        least, most = extents[name]
        if least == most:
            raise CalibrationError(
                f"{what}: {name} is {least + 0:g} all over the {len(frames)} frames that it is calibrated on: they are"
                " all alike, or the layer is dead; give data.train with other frames, or the query precision: fp32"
            )
    chosen = set(names)
    values = [value for node in model.graph for value in (*node.inputs, *node.outputs) if value is not None]
    nodes = {use.node for value in values if value.name in chosen for use in value.uses()}
    nodes |= {node for value in values if value.name in chosen and (node := value.producer()) is not None}
    with tempfile.TemporaryDirectory(prefix="gemel-calib-") as folder, contextlib.redirect_stdout(io.StringIO()):
        path = Path(folder) / "model.onnx"
        # The calibrator measures the outputs of Constant nodes too, and fails at the empty region of a Resize.
        lifted = LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model.clone()).model
        ir.save(lifted, path, external_data="weights.bin")
        calibrator = create_calibrator(
            path,
            sorted({node.op_type for node in nodes}),
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=_METHODS[method],
            providers=["CPUExecutionProvider"],
        )
        for begin in range(0, len(frames), _AT_ONCE):
            calibrator.collect_data(_Frames(str(port.name), frames[begin : begin + _AT_ONCE]))
        found = calibrator.compute_data().data
    return {name: _peak(extents[name], found[name].range_value) for name in names}


def too_large(model: ir.Model, frames: Sequence[CalibrationFrame]) -> dict[str, float]:
    """Find values of a float32 graph that may be too large for float16.

    The limit is 32,752, half of the largest float16 number, because other frames may have larger values.

    Returns:
        Value name -> largest absolute value, for the values above the limit.

    Raises:
        CalibrationError: there are no frames, a frame does not fit the graph's input, or a value is not finite.
    """
    what = f"model {model.graph.name}"
    _check_frames(what, model.graph.inputs[0], frames)
    names = [str(value.name) for node in model.graph for value in node.outputs if value.name]
    peaks = {name: max(map(abs, extent)) for name, extent in _extents(what, model, names, frames).items()}
    return {name: peak for name, peak in peaks.items() if peak > _MOST_FLOAT16}


def _check_frames(what: str, port: ir.Value, frames: Sequence[CalibrationFrame]) -> None:
    """Check that there are calibration frames, and that each has the shape of a graph's input.

    Raises:
        CalibrationError: there are no frames, or a frame does not have the shape of the input.
    """
    if not frames:
        raise CalibrationError(f"{what}: there are no frames to calibrate on")
    wanted = [size if isinstance(size, int) else 1 for size in port.shape or ()]
    for frame in frames:
        if list(frame.shape) != wanted:
            raise CalibrationError(f"{what}: a frame to calibrate on is {list(frame.shape)}, its input is {wanted}")


def _extents(
    what: str, model: ir.Model, names: Sequence[str], frames: Sequence[CalibrationFrame]
) -> dict[str, tuple[float, float]]:
    """Return name of each float value of a graph -> its smallest and largest number on all frames.

    Values are checked for not-a-number here, because ONNX Runtime's reductions skip not-a-number, its histograms fail
    on it, and neither reports the name of the value.

    Raises:
        CalibrationError: a value is not finite.
    """
    probe = model.clone()
    graph, port = probe.graph, str(probe.graph.inputs[0].name)
    made = {str(value.name): value for node in graph for value in node.outputs}
    graph.outputs.extend(made[name] for name in names if name in made and not made[name].is_graph_output())
    outputs = [name for name in names if name in made]
    session = open_session(Path(what), quiet(usual_threads()), proto=ir.to_proto(probe).SerializeToString())
    extents: dict[str, tuple[float, float]] = {}
    for frame in frames:
        found = dict(zip(outputs, session.run(outputs, {port: frame}), strict=True)) if outputs else {}
        for name, values in {port: frame, **found}.items():
            if not np.issubdtype(values.dtype, np.floating) or not values.size:
                continue
            if not np.isfinite(values).all():
                raise CalibrationError(f"{what}: {name} is not finite on the frames that it is calibrated on")
            least, most = extents.get(name, (math.inf, -math.inf))
            extents[name] = min(least, float(values.min())), max(most, float(values.max()))
    return extents


def _peak(extent: tuple[float, float], chosen: Any) -> float:
    """Return the largest absolute number of the range that a calibration method chose for an activation.

    If the activation is nearly always 0, the method may cut off every other number and choose a range of 0 to 0. The
    largest absolute number that occurred is returned then.

    Args:
        extent: smallest and largest number of the activation that occurred.
        chosen: lower and upper end of the range that the method chose.
    """
    peak = max(abs(float(np.asarray(value).item())) for value in chosen)
    return peak or max(map(abs, extent))
