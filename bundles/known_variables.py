"""Environment variables that a bundle may use because the user compiled it on this machine."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from platformdirs import user_state_path

from ..durable import write_whole
from ..environment import variables_of
from .manifest import Manifest
from .reader import Bundle

__all__ = ["bundle_variables", "hand_on_variables", "known_variables", "remember_variables"]

_log = logging.getLogger(__name__)

_FILE = "compiled-bundles"
_MOST = 1000
"""Maximum number of bundles in the record of bundles that the user compiled on this machine; older ones are
forgotten."""
_LINE = re.compile(r"([0-9a-f]{64})((?: \w+)*)")


def bundle_variables(content: Manifest) -> tuple[str, ...]:
    """Return the names of the environment variables in the feeds' sources and the outputs of a bundle."""
    return variables_of(" ".join(_texts(content)))


def remember_variables(bundle: Bundle) -> tuple[str, ...]:
    """Note in the user's state folder that the user compiled a bundle, which may then use its environment variables.

    Nothing is noted for a bundle without variables, ``${VAR}``. A folder that cannot be written is no error: then
    ``gemel-run --env`` allows the variables.

    Returns:
        Names of the bundle's environment variables.
    """
    names = bundle_variables(bundle.manifest)
    if names:
        known = {**_read(), bundle.id: names}
        lines = [" ".join((digest, *found)) for digest, found in known.items()][-_MOST:]
        try:
            _write("\n".join(lines) + "\n")
        except OSError as error:
            _log.info("%s: cannot be written: %s", _path(), error.strerror)
    return names


def known_variables(bundle: Bundle) -> tuple[str, ...]:
    """Return the names of the environment variables that a bundle may use because the user compiled exactly this bundle
    on this machine."""
    return _read().get(bundle.id, ())


def hand_on_variables(old: Bundle, new: Bundle) -> None:
    """Let the successor of a bundle use the variables that the old bundle may use, for the same addresses only.

    Nothing is noted if the new bundle names variables in a source or output that the old one does not have: these could
    carry a secret to somebody else.
    """
    with_variables = {text for text in _texts(new.manifest) if variables_of(text)}
    if known_variables(old) and with_variables <= {*_texts(old.manifest)}:
        remember_variables(new)


def _texts(content: Manifest) -> list[str]:
    """Return the feeds' sources and the outputs of a bundle, which may have variables."""
    return [*(feed.source for feed in content.feeds.values()), *(each.model_dump_json() for each in content.outputs)]


def _path() -> Path:
    return user_state_path("gemel") / _FILE


def _read() -> dict[str, tuple[str, ...]]:
    """Read the record of compiled bundles: SHA-256 of a manifest -> names of the bundle's environment variables.
    Damaged lines are left out."""
    try:
        text = _path().read_text(encoding="ascii", errors="replace")
    except OSError:
        return {}
    return {found[1]: tuple(found[2].split()) for line in text.splitlines() if (found := _LINE.fullmatch(line))}


def _write(text: str) -> None:
    """Write the record of compiled bundles: a temporary file takes the place of the old record in one step.

    Raises:
        OSError: the record cannot be written.
    """
    path = _path()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text.encode("ascii"))
