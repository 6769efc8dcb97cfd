"""Expansion of ``${VAR}`` in settings from environment variables, and which variables a bundle may use."""

from __future__ import annotations

import os
import re
from collections.abc import Collection

__all__ = ["VariableError", "expand", "variables_of"]

_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}", re.ASCII)
_OWN = "GEMEL_"
"""Beginning of the names of the environment variables that every bundle may use."""


class VariableError(KeyError):
    """Error about a variable that is not set or that may not be used. Its first argument is the variable's name."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__(name)
        self._what = what

    def __str__(self) -> str:
        return f"environment variable {self.args[0]} {self._what}"


def variables_of(text: str) -> tuple[str, ...]:
    """Return the names of the variables in a text, each once, in the order of their first use.

    >>> variables_of("rtsp://${USER}:${PASS:-x}@camera/${USER}")
    ('USER', 'PASS')
    """
    return tuple(dict.fromkeys(match[1] for match in _VARIABLE.finditer(text)))


def expand(text: str, allowed: Collection[str] | None = None) -> str:
    """Replace ``${VAR}`` and ``${VAR:-default}`` by the values of environment variables.

    Args:
        text: text with variables.
        allowed: names that may be used, besides those that begin with ``GEMEL_``; any name when left out. A text that
            came with a bundle may otherwise send the user's secrets to the address that the text names.

    Raises:
        VariableError: a variable without a default is not set, or a variable is not allowed.
    """

    def value(match: re.Match[str]) -> str:
        """Return the value of one matched variable, or the variable's default."""
        name = match[1]
        if allowed is not None and name not in allowed and not name.startswith(_OWN):
            raise VariableError(name, f"is not allowed in a bundle from elsewhere; allow it with --env {name}")
        found = os.environ.get(name, match[2])
        if found is None:
            raise VariableError(name, "is not set")
        return found

    return _VARIABLE.sub(value, text)
