"""One-line messages about errors in workload.yaml: file, line, field, value, what is allowed, what was meant."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from ...frames.address import hide_addresses
from .meant import nearest
from .yaml_text import FieldPath, line_of, scalar_of

__all__ = ["explain", "place"]

_MOST_KEY = 60
"""Maximum number of characters of a key of workload.yaml that an error message shows."""
_READ_AS = {"bool": "true or false", "int": "a number", "float": "a number", "null": "nothing", "timestamp": "a date"}
"""Kind of a YAML scalar that is not text -> words for what YAML reads it as."""
_EXPECTED = {
    "list_type": "a list is expected",
    "tuple_type": "a list is expected",
    "dict_type": "a mapping is expected",
    "bool_type": "true or false is expected",
    "bool_parsing": "true or false is expected",
    "int_type": "a whole number is expected",
    "int_parsing": "a whole number is expected",
    "int_from_float": "a whole number is expected",
    "float_type": "a number is expected",
    "float_parsing": "a number is expected",
    "finite_number": "a finite number is expected",
    "too_short": "at least one is expected",
}
"""Pydantic's type of error -> words for what is expected instead of the value."""


def explain(path: Path, node: yaml.Node | None, error: ValidationError) -> str:
    """Return a one-line message about the first of the validation errors in a workload file.

    Args:
        path: workload file.
        node: root of the file's YAML document.
        error: validation errors of the document.
    """
    first = error.errors(include_url=False)[0]
    context = first.get("ctx") or {}
    loc: tuple[str | int, ...] = context.get("at") or first["loc"]
    # Drop the names of union members and validators, which Pydantic adds to the location: they have no line.
    field = tuple(part for part in loc if not (isinstance(part, str) and re.search(r"[\[\](]", part)))
    if context.get("key") is not None:
        field = (*field, context["key"])
    value = first["input"]
    message = _message(first, node, field, is_key="[key]" in loc)
    if first["type"] == "unknown_key":
        field = (*field, str(context["name"]))
    elif first["type"] != "missing" and not isinstance(value, dict) and not context.get("secret"):
        shown = scalar_of(node, field)
        text = repr(value) if shown is None or isinstance(value, str) else shown.value
        message = f"{text:.60} is not allowed: {message}" if text else message
    others = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return place(path, node, field, message + others)


def _message(error: ErrorDetails, node: yaml.Node | None, field: FieldPath, *, is_key: bool) -> str:
    """Return what is expected instead of a workload's wrong value, and what was probably meant."""
    kind, value, context = error["type"], error["input"], error.get("ctx") or {}
    if kind == "missing":
        return "is missing"
    if kind == "literal_error":
        options = re.findall(r"'([^']*)'", str(context["expected"]))
        if not isinstance(value, str) and str(value) in options:
            return f'text is expected: quote it, "{value}"'
        near = nearest(value, options) if isinstance(value, str) else None
        return f"{context['expected']} is expected" + (f"; did you mean {near}?" if near else "")
    if kind == "string_type":
        return _quoted(value, node, field, is_key=is_key)
    if kind == "string_pattern_mismatch":
        return "letters, digits, - and _ are expected, with a letter or a digit first"
    expected = _EXPECTED.get(kind)
    if expected is None:
        message = error["msg"]
        message = message if kind == "mistake" else f"{message[0].lower()}{message[1:]}"
        return message.removeprefix("input should be ") + _share(value, context)
    if kind == "float_parsing":
        return expected + _share(value, {"le": 1})
    if expected == "a list is expected" and isinstance(value, dict):
        return f"{expected}, not a mapping: begin each item with '- '"
    return expected


def _quoted(value: Any, node: yaml.Node | None, field: FieldPath, *, is_key: bool) -> str:
    """Return the message about a workload's value that must be text and is not.

    YAML reads words such as ``on``, ``no`` and ``1`` as something else unless they are quoted.
    """
    shown = scalar_of(node, field)
    empty = shown is not None and shown.value == ""
    if isinstance(value, dict | list) or empty or (shown is None and not is_key):
        return "text is expected" + (", and nothing is there" if empty else "")
    if is_key or shown is None:
        # The file has one of several words for a boolean.
        written = "" if isinstance(value, bool) else f', "{value}"'
        read = _READ_AS.get(type(value).__name__, "something else")
        return f"text is expected, and YAML reads this as {read}: quote it{written}"
    read = _READ_AS.get(shown.tag.rpartition(":")[2], "something else")
    return f'text is expected, and YAML reads this as {read}: quote it, "{shown.value}"'


def _share(value: Any, context: Mapping[str, Any]) -> str:
    """Return a hint such as "did you mean 0.95?" for a percentage where a fraction is expected; empty otherwise."""
    number = re.fullmatch(r"(\d{1,3}(?:\.\d{1,6})?)\s*%?", str(value)[:20])
    if context.get("le") != 1 or number is None or not 1 < float(number[1]) <= 100:
        return ""
    return f"; did you mean {float(number[1]) / 100:g}?"


def place(path: Path, node: yaml.Node | None, field: FieldPath, message: str) -> str:
    """Return a message about a field of a workload, with file, line and field in front.

    Args:
        path: workload file.
        node: root of the file's YAML document.
        field: path to the field.
        message: what is wrong with the field.
    """
    line, known = line_of(node, field)
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{_shown(part)}" for part in known).lstrip(".")
    # The address of a camera may hold a password, also where it stands in the wrong place.
    text = hide_addresses(f"{name}: {message}" if name else message)
    return f"{path}:{line}: {text}"


def _shown(key: object) -> str:
    """Return a key of a workload for a one-line message: short, and without characters that a terminal would obey."""
    text = str(key) if str(key).isprintable() else ascii(key)
    return text if len(text) <= _MOST_KEY else f"{text[:_MOST_KEY]}..."
