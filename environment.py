"""Expansion of ``${VAR}`` in a user's settings from environment variables."""

from __future__ import annotations

import os
import re

__all__ = ["expand"]

_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


def expand(text: str) -> str:
    """Replace ``${VAR}`` and ``${VAR:-default}`` by the values of environment variables.

    Raises:
        KeyError: a variable without a default is not set. The error's argument is the variable's name.
    """

    def value(match: re.Match[str]) -> str:
        """Return the value of one matched variable, or the variable's default."""
        found = os.environ.get(match[1], match[2])
        if found is None:
            raise KeyError(match[1])
        return found

    return _VARIABLE.sub(value, text)
