"""Find the Python modules in a workload's folder that make its models. A merged workload needs copies of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from ...workload.document.schema import Workload

__all__ = ["imported_beside", "modules_beside"]


def modules_beside(workload: Workload) -> dict[str, bytes]:
    """Return path -> content of the imported modules in a workload's folder; paths are relative to that folder.

    The modules of model factories are included, and so are the modules that these import from the folder. A package
    comes with all of its ``.py`` files. The result is empty if no factory's module is in the folder.
    """
    root = workload.root.resolve()
    found = {path for name in _names(workload, root) for path in _files(name, root)}
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(found)}


def imported_beside(workload: Workload) -> list[ModuleType]:
    """Return the imported modules that are in a workload's folder, including the submodules of packages."""
    names = _names(workload, workload.root.resolve())
    return [module for name, module in list(sys.modules.items()) if name.partition(".")[0] in names]


def _names(workload: Workload, root: Path) -> set[str]:
    """Return the names of imported modules and packages in the folder ``root``; empty if no model factory is there."""
    factories = (query.model.factory for query in workload.queries)
    wanted = {factory.partition(":")[0].partition(".")[0] for factory in factories if factory}
    if not any(any(_files(name, root)) for name in wanted):
        return set()
    return {name for name in list(sys.modules) if "." not in name and any(_files(name, root))}


def _files(name: str, root: Path) -> Iterator[Path]:
    """Yield the files of an imported module that is directly in the folder ``root``.

    A module in a virtual environment below ``root`` does not count.
    """
    module = sys.modules.get(name)
    if module is None:
        return
    for place in _places(module):
        if place == root / f"{name}.py":
            yield place
        elif place == root / name:
            yield from (path for path in place.rglob("*.py") if path.is_file())


def _places(module: ModuleType) -> Iterator[Path]:
    """Yield the resolved path of a module's file, or of each folder of a package."""
    folders = getattr(module, "__path__", None)
    if folders is not None:
        yield from (Path(folder).resolve() for folder in folders)
    elif file := getattr(module, "__file__", None):
        yield Path(file).resolve()
