"""Small workloads, weights and videos that tests write to disk, and the commands as processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

SIZE = (32, 32)
BIN = Path(sys.executable).parent


def query(name: str, factory: str = "tiny_models:TinyNet", **changes: Any) -> dict[str, Any]:
    """A query on the feed ``yard`` whose weights are ``<name>.safetensors``."""
    model = {"factory": factory, "weights": f"{name}.safetensors", "input": {"size": list(SIZE)}}
    return {"name": name, "feed": "yard", "task": "classification", "model": model, **changes}


def save(model: nn.Module, path: Path) -> None:
    save_file({name: value.contiguous().clone() for name, value in model.state_dict().items()}, path)


def write_video(path: Path, frames: int = 12, size: tuple[int, int] = (64, 48), fps: int = 10) -> Path:
    """A short clip of moving noise."""
    rng = np.random.default_rng(0)
    base = rng.integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for index in range(frames):
            picture = av.VideoFrame.from_ndarray(np.roll(base, 2 * index, 1), format="bgr24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def swap_for_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def swap_for_a_link(path: Path) -> None:
    path.rename(path.with_suffix(".moved"))
    path.symlink_to(path.with_suffix(".moved"))


def call(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run an installed command."""
    program, *rest = map(str, arguments)
    # The factories of the tests' workloads are found as a user's would be.
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), **environment}
    return subprocess.run([BIN / program, *rest], capture_output=True, text=True, env=environment, timeout=120)


def without(*modules: str, path: Path) -> dict[str, str]:
    """An environment in which importing any of ``modules`` fails as if it was not installed."""
    lines = [f"sys.modules[{name!r}] = None" for name in modules]
    (path / "sitecustomize.py").write_text("\n".join(["import sys", *lines]))
    return {"PYTHONPATH": str(path)}


@contextmanager
def single_thread() -> Iterator[None]:
    """Two threads that wait for each other on a busy machine take ten times as long as one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
