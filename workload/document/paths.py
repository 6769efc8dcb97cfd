"""Lookup of the files that a workload names."""

from __future__ import annotations

from pathlib import Path

from ...errors import InputError, ModelError
from ...frames.reference import package_file

__all__ = ["locate"]


def locate(reference: str, root: Path, what: str) -> Path:
    """Return the path of the file that a reference in a workload names.

    Args:
        reference: an absolute path, a path relative to ``root``, or ``package:module/path`` for a file in an installed
            package.
        root: folder of the workload file.
        what: name of the query and field for errors, such as ``query door: weights``.

    Raises:
        ModelError: the file does not exist.
    """
    if reference.startswith("package:"):
        try:
            return package_file(reference)
        except InputError as error:
            raise ModelError(f"{what}: {error}") from error
    path = Path(reference).expanduser()
    path = path if path.is_absolute() else root / path
    if not path.is_file():
        raise ModelError(f"{what}: {path}: no such file")
    return path
