"""Reader of bundles: manifest, files and tensors of the blob. No file outside the bundle's folder is ever opened."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BundleError
from . import consistency, manifest
from .blob import tensor_id
from .forms import compute_kernel
from .manifest import Manifest, TensorSpec

__all__ = ["CACHE", "MANIFEST", "Bundle", "decode_manifest", "open_bundle", "sha256_of", "verify", "view"]

MANIFEST = "manifest.json"
"""Name of the manifest file in a bundle."""
CACHE = "device-cache"
"""Name of the folder in a bundle for files that were made from the bundle for one device (its device cache).

The manifest does not list these files.
"""


class Bundle:
    """A bundle on disk that has passed the cheap checks (schema, references, presence and size of every file).

    Attributes:
        path: folder of the bundle.
        manifest: content of manifest.json.
        id: SHA-256 of manifest.json, which identifies the whole bundle, because it holds the hash of every file.
    """

    def __init__(self, path: Path, content: Manifest, digest: str) -> None:
        self.path = path
        self.manifest = content
        self.id = digest

    def file(self, name: str) -> Path:
        """Return the path of one of the bundle's files.

        Raises:
            BundleError: the manifest does not list the file.
        """
        if name not in self.manifest.files:
            raise BundleError(f"{self.path}: {name} is not listed in {MANIFEST}")
        return self.path / name

    def tensor(self, name: str) -> NDArray[Any]:
        """Return a weight or another tensor of a bundle: read it from the blob, or compute it from tensors in the blob.

        The array is read-only.

        Raises:
            BundleError: the blob was shortened since the bundle was opened, or cannot be read, or the tensors that a
                kernel is computed from are damaged.
        """
        if (form := self.manifest.forms.get(name)) is not None:
            kernel = compute_kernel(form, self.tensor)
            if tensor_id(kernel) != name:
                raise BundleError(
                    f"{self.file(self.manifest.blob)}: kernel {name} is damaged: one of the tensors that it is computed"
                    f" from has changed: {', '.join(form.stored)}"
                )
            kernel.flags.writeable = False
            return kernel
        path, spec = self.file(self.manifest.blob), self.manifest.tensors[name]
        try:
            # Not mapped: a page that is gone because another program shortened the file would end this process.
            data = np.fromfile(path, np.uint8, spec.length, offset=spec.offset)
        except OSError as error:
            raise BundleError(f"{path}: cannot be read: {error.strerror}") from error
        if len(data) < spec.length:
            raise BundleError(f"{path}: ends after {spec.offset + len(data)} bytes; it was shortened")
        data.flags.writeable = False
        return view(data, spec, at=0)


def view(data: NDArray[np.uint8], spec: TensorSpec, *, at: int | None = None) -> NDArray[Any]:
    """Return one tensor as an array that is a view of bytes, without a copy.

    Args:
        data: bytes that hold the tensor.
        spec: dtype and shape of the tensor, and its offset in the blob.
        at: offset of the tensor in ``data``; if left out, ``data`` is the whole blob.
    """
    begin = spec.offset if at is None else at
    return data[begin : begin + spec.length].view(np.dtype(spec.dtype)).reshape(spec.shape)


def open_bundle(path: str | Path) -> Bundle:
    """Open a bundle, and check everything that can be checked without reading weights: schema, references, file sizes.

    Raises:
        BundleError: there is no bundle, its manifest is damaged or too new, or a file is missing, truncated or a link.
    """
    path = Path(path)
    where = path / MANIFEST
    if where.exists() and not where.is_file():
        raise BundleError(f"{where}: is not a file")
    try:
        data = where.read_bytes()
    except FileNotFoundError as error:
        for workload in (path / "merged" / "workload.yaml", path / "workload.yaml"):
            if workload.is_file():
                advice = f"first compile it: gemel-compile {workload} -o bundle/"
                raise BundleError(f"{path}: is the folder of a workload, not of a bundle; {advice}") from error
        raise BundleError(f"{path}: not a bundle (no {MANIFEST}); gemel-compile writes one") from error
    except OSError as error:
        raise BundleError(f"{where}: cannot be read: {error.strerror}") from error
    content = decode_manifest(data, str(where))
    _check_files(path, content)
    consistency.check_manifest(str(where), content)
    return Bundle(path, content, hashlib.sha256(data).hexdigest())


def decode_manifest(data: bytes, where: str) -> Manifest:
    """Return the content of a manifest.json. What it refers to is not checked.

    Args:
        data: bytes of the file.
        where: path of the file, for error messages.

    Raises:
        BundleError: the bytes are no manifest, or one that is too new.
    """
    try:
        document = json.loads(data)
    except ValueError as error:
        raise BundleError(f"{where}: not JSON: {error}") from error
    except RecursionError as error:
        raise BundleError(f"{where}: nested too deeply") from error
    if not isinstance(document, dict):
        raise BundleError(f"{where}: a JSON object is expected")
    return manifest.parse_manifest(document, where)


def verify(bundle: Bundle, without: Collection[str] = ()) -> Iterator[str]:
    """Read every file of a bundle, compare its SHA-256 with the manifest's, and yield the name of each file that
    passes.

    Args:
        bundle: the bundle.
        without: names of files to leave out.

    Raises:
        BundleError: the SHA-256 of a file differs from the manifest's.
    """
    for name, spec in bundle.manifest.files.items():
        if name in without:
            continue
        digest = sha256_of(bundle.file(name))
        if digest != spec.sha256:
            raise BundleError(
                f"{bundle.path / name}: content is damaged: sha256 is {digest[:12]}...,"
                f" the manifest says {spec.sha256[:12]}..."
            )
        yield name


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def _check_files(path: Path, content: Manifest) -> None:
    for name, spec in content.files.items():
        file = path / name
        # A link could lead out of the bundle, even one with a plain name.
        if file.is_symlink() or not file.is_file():
            raise BundleError(f"{file}: {'is a link' if file.is_symlink() else 'is missing'}")
        size = file.stat().st_size
        if size != spec.bytes:
            raise BundleError(f"{file}: has {size} bytes, the manifest says {spec.bytes}; it was truncated or replaced")
    if content.blob not in content.files:
        raise BundleError(f"{path}: the blob {content.blob!r} is not among the files of the manifest")
