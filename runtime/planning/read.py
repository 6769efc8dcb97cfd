"""Reading profiles from YAML files."""

from __future__ import annotations

from pathlib import Path

import yaml

from ...errors import InputError, first_line
from .profile import Profile, parse_profile

__all__ = ["read_profile"]


def read_profile(path: str | Path) -> Profile:
    """Read a profile from a YAML or JSON file.

    Raises:
        InputError: the file cannot be read, or is not a profile.
    """
    try:
        document = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or 'it is not text'}") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not YAML: {first_line(error)}") from error
    return parse_profile(document, str(path))
