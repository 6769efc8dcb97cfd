"""Bundles for tests of deltas: one, its successor with another layout, and one with retrained weights."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from reloads import compiled

from gemel.bundles.blob import Layout, tensor_id, write_blob
from gemel.bundles.delta_format import PRELUDE_BYTES
from gemel.bundles.reader import MANIFEST, Bundle, open_bundle
from gemel.bundles.write_delta import write_delta


def two_bundles(folder: Path) -> tuple[Path, Path]:
    """Compile a bundle of models a and b, and its successor: b has other weights, and c is new, so offsets move."""
    return compiled(folder / "first", "ab"), compiled(folder / "second", "abc", changed="b")


def retrained(bundle: Path, output: Path, change: Callable[[NDArray[Any]], NDArray[Any]]) -> Path:
    """Write a copy of a bundle in which all tensors of two or more dimensions are changed; return its folder."""
    old = open_bundle(bundle)
    arrays = {name: old.tensor(name) for name in old.manifest.tensors}
    made = {name: change(array) if array.ndim > 1 else array for name, array in arrays.items()}
    names = {name: tensor_id(array) for name, array in made.items()}
    shutil.copytree(bundle, output)
    text = (bundle / MANIFEST).read_text()
    for name, new in names.items():
        text = text.replace(name, new)
    document = json.loads(text)
    content = old.manifest
    blob = output / content.blob
    blob.unlink()
    placed = Layout(
        {names[name]: spec for name, spec in content.tensors.items()},
        dict(content.segments),
        content.files[content.blob].bytes,
    )
    document["files"][content.blob]["sha256"] = write_blob(
        blob, placed, {names[name]: array for name, array in made.items()}.__getitem__
    )
    (output / MANIFEST).write_text(json.dumps(document))
    return output


def delta_between(old: Path, new: Path, output: Path) -> Path:
    """Write the delta between two bundles to a file, and return its path."""
    return write_delta(open_bundle(old), open_bundle(new), output).path


def with_header(delta: Path, change: Callable[[dict[str, Any]], None], frames: Callable[[bytes], bytes]) -> None:
    """Replace the header and the frames of a delta by changed ones, with hashes of the header that fit."""
    data = delta.read_bytes()
    size = int.from_bytes(data[12:20], "little")
    document = json.loads(data[PRELUDE_BYTES : PRELUDE_BYTES + size])
    change(document)
    header = json.dumps(document).encode()
    digest = hashlib.sha256(bytes(64) + header).digest()
    begin = data[:12] + len(header).to_bytes(8, "little") + bytes(64) + digest
    delta.write_bytes(begin + header + frames(data[PRELUDE_BYTES + size :]))


def content_of(folder: Path) -> dict[str, str]:
    """Return file -> SHA-256 of everything below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def noise(size: float) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Return a function that adds noise to weights; ``size`` is in parts of their standard deviation."""
    rng = np.random.default_rng(0)

    def add(array: NDArray[Any]) -> NDArray[Any]:
        change = rng.normal(size=array.shape) * array.std() * size
        return (array + change).astype(array.dtype)

    return add


def opened(*folders: Path) -> list[Bundle]:
    return [open_bundle(folder) for folder in folders]
