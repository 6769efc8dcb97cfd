"""``${VAR}`` in the settings of a user, taken from the environment."""

from __future__ import annotations

import os
import re

__all__ = ["expand"]

_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


def expand(text: str) -> str:
    """Put the values of environment variables in place of ``${VAR}`` and ``${VAR:-default}``.

    Raises:
        KeyError: a variable without a default is not set; its name is the argument.
    """

    def value(match: re.Match[str]) -> str:
        found = os.environ.get(match[1], match[2])
        if found is None:
            raise KeyError(match[1])
        return found

    return _VARIABLE.sub(value, text)
