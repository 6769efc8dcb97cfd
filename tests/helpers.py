"""Helpers that write small workloads, weights and videos to disk, and run the commands in processes of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from gemel.bundles.reader import MANIFEST, Bundle, open_bundle

SIZE = (32, 32)
BIN = Path(sys.executable).parent


def query(name: str, factory: str = "tiny_models:TinyNet", **changes: Any) -> dict[str, Any]:
    """Return a query on the feed ``yard`` with the weights ``<name>.safetensors``, as in workload.yaml."""
    model = {"factory": factory, "weights": f"{name}.safetensors", "input": {"size": list(SIZE)}}
    return {"name": name, "feed": "yard", "task": "classification", "model": model, **changes}


def save(model: nn.Module, path: Path) -> None:
    """Write a model's state dict as a safetensors file."""
    save_file({name: value.contiguous().clone() for name, value in model.state_dict().items()}, path)


def write_video(path: Path, frames: int = 12, size: tuple[int, int] = (64, 48), fps: int = 10) -> Path:
    """Write a short clip of moving noise, ``size`` being width and height, and return its path."""
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


def edit_json(path: Path, change: Callable[[Any], object]) -> None:
    """Change the document in a JSON file."""
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def edited_bundle(bundle: Path, output: Path, change: Callable[[Any], object]) -> Bundle:
    """Copy a bundle, change the document of its manifest, and open it."""
    shutil.copytree(bundle, output)
    edit_json(output / MANIFEST, change)
    return open_bundle(output)


def keep_images(folder: Path, count: int) -> None:
    """Delete all but ``count`` images of each class in the data sets of the fixture ``trained``, for short merges."""
    for images in folder.glob("data/*/*/*"):
        for path in sorted(images.iterdir())[count:]:
            path.unlink()


def swap_for_a_pipe(path: Path) -> None:
    """Replace a file by a named pipe."""
    path.unlink()
    os.mkfifo(path)


def swap_for_a_link(path: Path) -> None:
    """Move a file aside and leave a symbolic link to it."""
    path.rename(path.with_suffix(".moved"))
    path.symlink_to(path.with_suffix(".moved"))


def call(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run an installed command with some environment variables added, for at most 120 seconds."""
    program, *rest = map(str, arguments)
    # Factories of the tests' workloads are imported from the folder of the tests.
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), **environment}
    return subprocess.run([BIN / program, *rest], capture_output=True, text=True, env=environment, timeout=120)


def without(*modules: str, path: Path) -> dict[str, str]:
    """Return environment variables with which importing any of ``modules`` fails as if it were not installed.

    Args:
        modules: names of the modules.
        path: folder for a ``sitecustomize.py``.
    """
    lines = [f"sys.modules[{name!r}] = None" for name in modules]
    (path / "sitecustomize.py").write_text("\n".join(["import sys", *lines]))
    return {"PYTHONPATH": str(path)}


@contextmanager
def single_thread() -> Iterator[None]:
    """Let PyTorch use one thread inside the context.

    On a busy machine, two threads that wait for each other take ten times as long as one.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
