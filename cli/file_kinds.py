"""Checks that the file given to a command is of the right kind (bundle, profile), with advice if it is of another."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import InputError

__all__ = ["require_bundle", "require_profile"]

_MOST = 1 << 16
"""Number of bytes at the beginning of a file from which the file's kind is recognised."""


def require_bundle(path: Path) -> Path:
    """Return a path that may be a bundle's folder; refuse a file, and name the command that takes such a file.

    Raises:
        InputError: the path is a file.
    """
    if path.is_file():
        kind, advice = _kind_of(path)
        raise InputError(f"{path}: is {kind}, not the folder of a bundle; {advice}")
    return path


def require_profile(path: Path) -> Path:
    """Return a path that may be a profile; refuse another kind of file, and name the command that takes it.

    Raises:
        InputError: the path is a bundle, a workload or another file that gemel knows.
    """
    kind, advice = _kind_of(path)
    if path.is_dir() or kind not in ("a profile", "a file of another kind"):
        raise InputError(f"{path}: is {kind}, not a profile; {advice}")
    return path


def _kind_of(path: Path) -> tuple[str, str]:
    """Return what kind of file or folder a path is (such as "a bundle"), and advice on what to do with it."""
    if path.is_dir():
        if (path / "manifest.json").is_file():
            return "a bundle", f"gemel profile {path} writes a profile of it"
        return "a folder", "gemel profile BUNDLE writes a profile"
    if path.suffix == ".onnx":
        return "an ONNX file", f"gemel init {path} writes a workload for it"
    try:
        with path.open("rb") as file:
            head = file.read(_MOST).decode("utf-8", "replace")
    except OSError:
        return "a file of another kind", "gemel --help lists the commands"
    keys = set(re.findall(r"(?:^|[{,])\s*[\"']?(\w+)[\"']?\s*:", head, re.MULTILINE))
    if path.name == "manifest.json":
        return "the manifest of a bundle", f"give its folder, {path.parent}"
    if {"segments", "models"} <= keys and "feeds" not in keys:
        return "a profile", f"gemel simulate {path} takes it"
    if {"feeds", "queries"} <= keys:
        return "a workload", f"first compile it: gemel-compile {path} -o bundle/"
    return "a file of another kind", "gemel-compile WORKLOAD.YAML -o bundle/ writes a bundle"
