"""Find the files that a workload refers to."""

from __future__ import annotations

from pathlib import Path

from ...errors import InputError, ModelError
from ...frames.reference import package_file

__all__ = ["locate"]


def locate(reference: str, root: Path, what: str) -> Path:
    """The file that ``reference`` names: absolute, relative to ``root``, or ``package:module/path`` in a package.

    Args:
        reference: as written in the workload.
        root: folder of the workload file.
        what: field named in errors, such as ``query door: weights``.

    Raises:
        ModelError: there is no such file.
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
