"""Reader of workload.yaml, with errors that name file, line, field, value and what is allowed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ...environment import expand
from ...errors import WorkloadError
from .schema import Workload

__all__ = ["load_workload"]

Field = tuple[str | int, ...]
"""Path to a field of the document: keys of mappings and positions in lists."""


def load_workload(path: str | Path) -> Workload:
    """Read and validate a workload.

    ``${VAR}`` and ``${VAR:-default}`` in strings are replaced by environment variables. In the address of a camera they
    stay as they are and are replaced when the bundle runs.

    Args:
        path: the workload file.

    Raises:
        WorkloadError: the file is missing, is not valid YAML, or has an unknown key or a value that is not allowed.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise WorkloadError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise WorkloadError(f"{path}: is not UTF-8 text") from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        document = yaml.safe_load(text)
    except RecursionError as error:
        raise WorkloadError(f"{path}: nested too deeply") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise WorkloadError(f"{path}{line}: not YAML: {getattr(error, 'problem', None) or error}") from error
    if (twice := _repeated(node)) is not None:
        raise WorkloadError(f"{path}:{twice[0]}: key {twice[1]!r} is there twice")
    if not isinstance(document, dict):
        raise WorkloadError(f"{path}: a mapping with schema_version, feeds and queries is expected")
    try:
        workload = Workload.model_validate(_expand(document, ()))
    except RecursionError as error:
        raise WorkloadError(f"{path}: an alias leads back to itself") from error
    except _UnsetError as error:
        raise WorkloadError(_at(path, node, error.field, f"environment variable {error.name} is not set")) from error
    except ValidationError as error:
        raise WorkloadError(_explain(path, node, error)) from error
    workload._path = path.absolute()
    return workload


class _UnsetError(Exception):
    """An environment variable without default that a field names and that is not set."""

    def __init__(self, name: str, field: Field) -> None:
        super().__init__(name)
        self.name, self.field = name, field


def _expand(value: Any, field: Field) -> Any:
    """Return a value of the document with environment variables replaced, in nested values too.

    Args:
        value: the value.
        field: path to the value.

    Raises:
        _UnsetError: a variable without default is not set.
    """
    if isinstance(value, dict):
        return {key: _expand(item, (*field, key)) for key, item in value.items()}
    if isinstance(value, list):
        return [_expand(item, (*field, index)) for index, item in enumerate(value)]
    if isinstance(value, str):
        try:
            expanded = expand(value)
        except KeyError as error:
            raise _UnsetError(error.args[0], field) from error
        # Keep variables in a camera's address: it may hold a password, and the workload is written into bundles.
        return value if field[:1] == ("feeds",) and "://" in expanded else expanded
    return value


def _explain(path: Path, node: yaml.Node | None, error: ValidationError) -> str:
    """Return a one-line message for the first of some validation errors."""
    first = error.errors(include_url=False)[0]
    # Drop the names of union members and validators, which Pydantic adds to the location: they have no line.
    loc = first.get("ctx", {}).get("at") or first["loc"]
    field = tuple(part for part in loc if not (isinstance(part, str) and re.search(r"[\[\](]", part)))
    message = first["msg"]
    if first["type"] == "missing":
        message = "is missing"
    elif not isinstance(first["input"], dict):
        message = f"{first['input']!r:.60} is not allowed: {message[0].lower()}{message[1:]}"
    others = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return _at(path, node, field, message + others)


def _at(path: Path, node: yaml.Node | None, field: Sequence[str | int], message: str) -> str:
    """Return a message with file, line and field in front."""
    line, known = _line(node, field)
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in known).lstrip(".")
    return f"{path}:{line}: {name}: {message}" if name else f"{path}:{line}: {message}"


def _repeated(node: yaml.Node | None) -> tuple[int, str] | None:
    """Return line and name of a key that a mapping has twice, None if there is none.

    YAML would silently take the last of them.
    """
    stack, seen = [node], set()
    while stack:
        item = stack.pop()
        # An alias may lead back to a node that was visited before.
        if item is None or id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, yaml.MappingNode):
            keys: set[str] = set()
            for key, value in item.value:
                if key.value in keys:
                    return key.start_mark.line + 1, str(key.value)
                keys.add(str(key.value))
                stack.append(value)
        elif isinstance(item, yaml.SequenceNode):
            stack.extend(item.value)
    return None


def _line(node: yaml.Node | None, field: Sequence[str | int]) -> tuple[int, list[str | int]]:
    """Return the line of a field, or of its nearest ancestor in the file, and the part of the path that is real.

    Args:
        node: root of the YAML document.
        field: path to the field; the last parts may be missing in the file.
    """
    line = node.start_mark.line + 1 if node else 1
    known: list[str | int] = []
    for part in field:
        child: yaml.Node | None = None
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == str(part):
                    child, line = value, key.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            child = node.value[part]
            line = child.start_mark.line + 1
        elif isinstance(node, yaml.ScalarNode):
            break
        known.append(part)
        if child is None:
            break
        node = child
    return line, known
