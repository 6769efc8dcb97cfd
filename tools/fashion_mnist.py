"""Images and classes of Fashion-MNIST (Xiao, Rasul, Vollgraf 2017; MIT licence), from Debian's package of it."""

from __future__ import annotations

import gzip
import subprocess
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from debian_files import fetch_files
from numpy.typing import NDArray

__all__ = ["read_fashion_mnist"]

_PACKAGE, _INSIDE = "dataset-fashion-mnist", "usr/share/datasets/fashion-mnist"
_LIMIT_S = 300.0
"""Seconds after which the download fails."""


def read_fashion_mnist(part: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return images ``[N, 28, 28]`` and their classes ``[N]``, and print where they came from.

    Args:
        part: ``train``, 60,000 images, or ``t10k``, 10,000.

    Raises:
        SystemExit: the package cannot be had.
    """
    names = (f"{part}-images-idx3-ubyte.gz", f"{part}-labels-idx1-ubyte.gz")
    with tempfile.TemporaryDirectory() as work:
        try:
            source = fetch_files(_PACKAGE, {f"{_INSIDE}/{name}": Path(work) / name for name in names}, _LIMIT_S)
        except (OSError, subprocess.SubprocessError, tarfile.TarError) as error:
            raise SystemExit(f"error: Debian's package {_PACKAGE} cannot be had: {error}") from error
        print(f"Fashion-MNIST: {source}", flush=True)
        images, classes = (_read_idx(Path(work) / name) for name in names)
    return images, classes


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """Read the array in a gzipped IDX file of bytes, the format of MNIST's images and labels."""
    data = gzip.decompress(path.read_bytes())
    dims = np.frombuffer(data, ">u4", data[3], 4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(dims)
