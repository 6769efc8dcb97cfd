"""Python modules that lie beside a workload: models may be made by them, and where merging goes they must go, too."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from ...workload.document.schema import Workload

__all__ = ["imported_beside", "modules_beside"]


def modules_beside(workload: Workload) -> dict[str, bytes]:
    """Files of the modules in the workload's folder that have been imported, by their paths relative to it.

    A factory's module is there, and with it what it imports from its own folder; of a package, every ``.py`` file.
    Nothing is returned where all factories are installed ones.
    """
    root = workload.root.resolve()
    found = {path for name in _names(workload, root) for path in _files(name, root)}
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(found)}


def imported_beside(workload: Workload) -> list[ModuleType]:
    """The same as modules, each part of a package for itself."""
    names = _names(workload, workload.root.resolve())
    return [module for name, module in list(sys.modules.items()) if name.partition(".")[0] in names]


def _names(workload: Workload, root: Path) -> set[str]:
    """Imported modules and packages of the folder ``root``; none where no factory is among them."""
    factories = (query.model.factory for query in workload.queries)
    wanted = {factory.partition(":")[0].partition(".")[0] for factory in factories if factory}
    if not any(any(_files(name, root)) for name in wanted):
        return set()
    return {name for name in list(sys.modules) if "." not in name and any(_files(name, root))}


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
