"""References to files in a workload: paths, URLs, and files inside installed packages."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path, PurePosixPath

from ..errors import InputError

__all__ = ["is_local_file", "package_file"]


def is_local_file(source: str) -> bool:
    """Return whether a source is an absolute or relative path of a file or folder, not a URL, package or device."""
    return "://" not in source and not source.startswith(("package:", "/dev/"))


def package_file(reference: str) -> Path:
    """Return the path of the file in an installed package that ``package:NAME/path`` names; import no package.

    Raises:
        InputError: the package or the file does not exist, or the path leaves the package.
    """
    name, _, inside = reference.removeprefix("package:").partition("/")
    parts = PurePosixPath(inside).parts
    # Links are allowed, only the text is checked: installers may link files of a package from a cache outside.
    if not name.isidentifier() or not parts or ".." in parts or parts[0] == "/" or "\\" in inside or "\0" in inside:
        raise InputError(f"{reference!r}: expected package:NAME/path/file, with a path that stays inside the package")
    try:
        spec = find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.submodule_search_locations is None:
        raise InputError(f"{reference!r}: package {name!r} is not installed")
    for root in spec.submodule_search_locations:
        path = Path(root, *parts)
        if path.is_file():
            return path
    raise InputError(f"{reference!r}: package {name!r} has no file {inside!r}")
