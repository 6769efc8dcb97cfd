"""Python modules that lie beside a workload: models may be made by them, and a merged workload needs them, too."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from ..workload.schema import Workload

__all__ = ["modules_beside"]


def modules_beside(workload: Workload) -> dict[str, bytes]:
    """Files of the modules in the workload's folder that have been imported, by their paths relative to it.

    A factory's module is there, and with it what it imports from its own folder; of a package, every ``.py`` file.
    Nothing is returned where all factories are installed ones.
    """
    root = workload.root.resolve()
    names = {
        query.model.factory.partition(".")[0].partition(":")[0] for query in workload.queries if query.model.factory
    }
    if not any(list(_files(name, root)) for name in names):
        return {}
    found = {path for name in list(sys.modules) if "." not in name for path in _files(name, root)}
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(found)}


def _files(name: str, root: Path) -> Iterator[Path]:
    """Files of an imported module if it is one of the folder ``root`` itself, not of an environment below it."""
    module = sys.modules.get(name)
    if module is None:
        return
    for place in _places(module):
        if place == root / f"{name}.py":
            yield place
        elif place == root / name:
            yield from (path for path in place.rglob("*.py") if path.is_file())


def _places(module: ModuleType) -> Iterator[Path]:
    """The folders of a package, or the file of a module."""
    folders = getattr(module, "__path__", None)
    if folders is not None:
        yield from (Path(folder).resolve() for folder in folders)
    elif file := getattr(module, "__file__", None):
        yield Path(file).resolve()
