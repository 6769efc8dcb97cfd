"""Small ONNX models that begin with the same layers, for tests of stems."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from onnx_graphs import N, weight, write_graph

from gemel.workload import Workload


def stem_workload(folder: Path, workload_in: Callable[..., Workload], *seeds: Sequence[int]) -> Workload:
    """Write models ``a``, ``b``, ... of one feed, and return their workload.

    Args:
        folder: folder for the ONNX files.
        workload_in: the fixture of that name.
        seeds: a model each: the seeds of its convolutions' kernels, of 16 channels each. The input is 16 x 16 pixels,
            and the output is ``y [batch, 16]``.
    """
    queries = []
    for name, own in zip("abcdef", seeds, strict=False):
        nodes, weights, value = [], [], "image"
        for index, seed in enumerate(own):
            weights.append(weight(f"w{index}", 16, 16 if index else 3, 3, 3, seed=seed))
            nodes.append(N("Conv", [value, f"w{index}"], [f"c{index}"], pads=[1] * 4))
            nodes.append(N("Relu", [f"c{index}"], [value := f"r{index}"]))
        nodes += [N("GlobalAveragePool", [value], ["g"]), N("Flatten", ["g"], ["y"])]
        write_graph(folder / f"{name}.onnx", nodes, weights, outputs={"y": ["batch", 16]})
        queries.append({"name": name, "feed": "yard", "task": "embedding", "model": {"onnx": f"{name}.onnx"}})
    return workload_in(*queries)
