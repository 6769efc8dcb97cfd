"""Small workloads, weights and videos that tests write to disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
from safetensors.torch import save_file
from torch import nn

SIZE = (32, 32)


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
