"""Reader of workload.yaml, with errors that name file, line, field, value and what is allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ...environment import expand
from ...errors import WorkloadError
from .explain import explain, place
from .schema import Workload
from .yaml_text import FieldPath, parse_yaml

__all__ = ["load_workload"]


def load_workload(path: str | Path) -> Workload:
    """Read a workload.yaml and check that it is valid.

    ``${VAR}`` and ``${VAR:-default}`` in strings are replaced by environment variables. In the address of a camera they
    stay as they are and are replaced when the bundle runs; such a variable need not be set here.

    Args:
        path: workload file.

    Raises:
        WorkloadError: the file is missing, is not valid YAML, or has an unknown key or a value that is not allowed.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except IsADirectoryError as error:
        what = "a bundle" if (path / "manifest.json").is_file() else "a folder"
        raise WorkloadError(f"{path}: is {what}, not a workload file") from error
    except OSError as error:
        raise WorkloadError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        onnx = f"; gemel init {path} writes a workload for an ONNX file" if path.suffix == ".onnx" else ""
        raise WorkloadError(f"{path}: is not UTF-8 text{onnx}") from error
    node, document = parse_yaml(text, str(path))
    if not isinstance(document, dict):
        raise WorkloadError(f"{path}: a mapping with schema_version, feeds and queries is expected")
    if (kind := _other_kind(document)) is not None:
        raise WorkloadError(f"{path}: is {kind}, not a workload")
    try:
        expanded = _expand(document, ())
        workload = Workload.model_validate(expanded, context={"root": path.absolute().parent})
    except _UnsetError as error:
        raise WorkloadError(place(path, node, error.field, f"environment variable {error.name} is not set")) from error
    except ValidationError as error:
        raise WorkloadError(explain(path, node, error)) from error
    workload._path = path.absolute()
    return workload


def _other_kind(document: dict[Any, Any]) -> str | None:
    """Return what kind of gemel's other files a YAML document is (manifest, profile, merge report); None if none."""
    if {"blob", "programs", "segments"} <= document.keys():
        return "the manifest of a bundle"
    if {"segments", "models", "queries"} <= document.keys():
        return "a profile, for gemel simulate"
    if {"trials", "merged_bytes"} <= document.keys():
        return "the report of a merge"
    return None


class _UnsetError(Exception):
    """Error about an environment variable that a field of a workload names without a default, and that is not set."""

    def __init__(self, name: str, field: FieldPath) -> None:
        super().__init__(name)
        self.name, self.field = name, field


def _expand(value: Any, field: tuple[str | int, ...]) -> Any:
    """Return a value of a workload's document with environment variables replaced, in nested values, too.

    Args:
        value: value of the document.
        field: path to the value in the document.

    Raises:
        _UnsetError: a variable without default is not set.
    """
    if isinstance(value, dict):
        return {key: _expand(item, (*field, key)) for key, item in value.items()}
    if isinstance(value, list):
        return [_expand(item, (*field, index)) for index, item in enumerate(value)]
    if field[:1] == ("outputs",):
        # Variables in outputs are replaced on the machine that runs the bundle.
        return value
    if isinstance(value, str):
        # Keep variables in a camera's address: it may hold a password, and the workload is written into bundles. The
        # address may be one variable, or begin with one that is only set on the machine that runs the bundle.
        is_source = field[:1] == ("feeds",)
        if is_source and "://" in value:
            return value
        try:
            expanded = expand(value)
        except KeyError as error:
            if is_source and value.startswith("${"):
                return value
            raise _UnsetError(error.args[0], field) from error
        return value if is_source and "://" in expanded else expanded
    return value
