"""Read workload.yaml; every error names file, line, field, value and what is allowed."""

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


def load_workload(path: str | Path) -> Workload:
    """Read and validate a workload.

    ``${VAR}`` and ``${VAR:-default}`` in strings come from the environment. In the address of a camera they stay as
    they are, to be filled in when the bundle runs.

    Raises:
        WorkloadError: a missing file, a YAML syntax error, an unknown key or a value that is not allowed.
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
    def __init__(self, name: str, field: Field) -> None:
        super().__init__(name)
        self.name, self.field = name, field


def _expand(value: Any, field: Field) -> Any:
    if isinstance(value, dict):
        return {key: _expand(item, (*field, key)) for key, item in value.items()}
    if isinstance(value, list):
        return [_expand(item, (*field, index)) for index, item in enumerate(value)]
    if isinstance(value, str):
        try:
            expanded = expand(value)
        except KeyError as error:
            raise _UnsetError(error.args[0], field) from error
        # A camera's address may hold a password, and what is loaded here is written into bundles.
        return value if field[:1] == ("feeds",) and "://" in expanded else expanded
    return value


def _explain(path: Path, node: yaml.Node | None, error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    # Pydantic adds the names of union members and validators to a location; only real keys have a line.
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
    line, known = _line(node, field)
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in known).lstrip(".")
    return f"{path}:{line}: {name}: {message}" if name else f"{path}:{line}: {message}"


def _repeated(node: yaml.Node | None) -> tuple[int, str] | None:
    """Line and name of the first key that a mapping has twice; YAML would silently take the last."""
    stack, seen = [node], set()
    while stack:
        item = stack.pop()
        # An alias may lead back to a node that is being looked at.
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
    """The line of the deepest part of ``field`` that the file has, and the field as far as it makes sense."""
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
