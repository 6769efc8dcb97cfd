"""Sources of a bundle's feeds, some of which the user replaces."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..errors import FeedError
from .manifest import FeedSpec

__all__ = ["feeds_from"]


def feeds_from(feeds: Mapping[str, FeedSpec], sources: Mapping[str, str]) -> dict[str, FeedSpec]:
    """Return a bundle's feeds, with some sources replaced.

    Args:
        feeds: feeds of the bundle, by name.
        sources: feed name to the source that replaces the bundle's.

    Raises:
        FeedError: ``sources`` names a feed that does not exist.
    """
    for name in sources:
        if name not in feeds:
            # Without a name, --feed takes the beginning of an address, which may hold a password, for one.
            shown = f"feed {name!r}" if re.fullmatch(r"[\w .-]{1,64}", name) else "--feed NAME=SOURCE: NAME"
            raise FeedError(f"{shown} is not in the bundle; its feeds are {', '.join(feeds)}")
    return {name: spec.model_copy(update={"source": sources.get(name, spec.source)}) for name, spec in feeds.items()}
