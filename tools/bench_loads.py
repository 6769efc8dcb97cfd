"""Measure the cost of a swap-in on a CPU: map weights that are in the page cache, or read them into private memory.

    .venv/bin/python tools/bench_loads.py --megabytes 104

The arena maps a file that it can guard from other writers with a lease; this is measured with large and with small
pages. Without a lease, the arena reads the file. See gemel/runtime/memory/guarded_file.py.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path
from time import perf_counter, thread_time
from unittest import mock

from rich.console import Console
from rich.table import Table

from gemel.bundles.manifest import SegmentSpec, TensorSpec
from gemel.runtime.memory.guarded_file import GuardedFile
from gemel.runtime.memory.host_arena import HostArena
from gemel.runtime.memory.mapped_blob import forget

_TENSOR = "0" * 32


def _measure(path: Path, size: int, rounds: int) -> tuple[float, float]:
    """Return the median CPU time and duration of a swap-in of the whole file, in milliseconds."""
    tensors = {_TENSOR: TensorSpec(offset=0, length=size, dtype="uint8", shape=(size,))}
    segments = {"s0": SegmentSpec(models=("m",), offset=0, length=size, tensors=(_TENSOR,))}
    arena = HostArena(path, tensors, segments)
    times: list[tuple[float, float]] = []
    for _ in range(rounds + 1):
        began, worked = perf_counter(), thread_time()
        arena.acquire(["s0"])
        times.append((1e3 * (thread_time() - worked), 1e3 * (perf_counter() - began)))
        arena.release(["s0"])
        arena.evict()
    arena.close()
    # The first swap-in reads from the disk.
    cpu, wall = zip(*times[1:], strict=True)
    return statistics.median(cpu), statistics.median(wall)


def main() -> None:
    """Measure each way of loading, and print a table."""
    parser = argparse.ArgumentParser(description="Measure what a swap-in costs on a CPU.")
    parser.add_argument("--megabytes", type=int, default=104, help="size of the weights, in units of 2^20 bytes")
    parser.add_argument("--rounds", type=int, default=25, help="swap-ins of each kind")
    options = parser.parse_args()
    size = options.megabytes << 20
    table = Table(title=f"swap-in of {options.megabytes} MiB from the page cache, median of {options.rounds}")
    for column in ("way", "CPU ms", "ms"):
        table.add_column(column, justify="left" if column == "way" else "right")
    with tempfile.TemporaryDirectory(prefix="gemel-loads-", dir=".") as folder:
        path = Path(folder) / "weights.bin"
        with path.open("wb") as file:
            for _ in range(options.megabytes):
                file.write(os.urandom(1 << 20))
            file.flush()
            os.fsync(file.fileno())
        forget(path, 0, size)
        path.read_bytes()  # fills the page cache with small pages
        rows = {"mapped, small pages": _measure(path, size, options.rounds)}
        forget(path, 0, size)
        rows["mapped, large pages"] = _measure(path, size, options.rounds)
        with mock.patch.object(GuardedFile, "_take_lease", return_value=False):
            rows["read into own memory"] = _measure(path, size, options.rounds)
    for name, (cpu, wall) in rows.items():
        table.add_row(name, f"{cpu:.3f}", f"{wall:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
