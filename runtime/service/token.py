"""Token of the HTTP server: a secret that requests must have, from a file or the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ...errors import InputError

__all__ = ["VARIABLE", "read_token"]

VARIABLE = "GEMEL_TOKEN"
"""Name of the environment variable that may hold the HTTP server's token."""
_MOST = 4096
"""Maximum number of characters of the HTTP server's token."""


def read_token(file: Path | None, environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the HTTP server's token from a file, or else from the environment; None if there is none.

    Args:
        file: file that holds only the token, and maybe a line break at its end.
        environment: environment variables of the process.

    Raises:
        InputError: the file cannot be read or is empty, or the token cannot be sent in a request.
    """
    if file is None:
        token, where = environment.get(VARIABLE, ""), VARIABLE
        if not token:
            return None
    else:
        where = f"--token-file {file}"
        try:
            with file.open(encoding="utf-8") as opened:
                token = opened.read(_MOST + 2)
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{where}: cannot be read: {getattr(error, 'strerror', None) or 'not text'}") from error
        token = token.strip()
    if not token or len(token) > _MOST or not token.isascii() or not token.isprintable() or " " in token:
        raise InputError(f"{where}: a token is expected: ASCII characters without spaces")
    return token
