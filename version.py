"""Lookup of the version of the gemel package that is running."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["find_version"]

_PROJECT = Path(__file__).with_name("pyproject.toml")


def find_version() -> str:
    """Return gemel's version: of the installed package, or from pyproject.toml in a checkout that is not installed."""
    try:
        return version("gemel")
    except PackageNotFoundError:
        text = _PROJECT.read_text(encoding="utf-8") if _PROJECT.is_file() else ""
        # Not with tomllib, which Python 3.10 lacks.
        found = re.search(r'^version = "(.+)"$', text, re.MULTILINE)
        return found[1] if found else "unknown"
