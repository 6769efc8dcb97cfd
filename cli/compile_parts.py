"""Parts of ``gemel compile``: lines about feeds, inputs and memory that need no decision of the compiler."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..bundles.budget import budget
from ..errors import FeedError, InputError

if TYPE_CHECKING:
    from ..bundles.reader import Bundle
    from ..workload import Workload

__all__ = ["describe_inputs", "note_labels", "warn_of_feeds", "warn_of_memory"]


def warn_of_feeds(workload: Workload) -> Iterator[str]:
    """Yield a warning for each feed whose file cannot be found here; a box may have it elsewhere.

    Cameras and devices are not looked for, because they belong to the box.
    """
    from ..frames.source import resolve

    for name, feed in workload.feeds.items():
        if "${" in feed.source and "://" not in feed.source:
            yield f"{name}: {feed.source} is filled in when the bundle runs"
        elif "://" not in feed.source and not feed.source.startswith("/dev/"):
            try:
                resolve(name, feed.source, base=workload.root)
            except FeedError as error:
                yield f"warning: {error}; gemel-run --feed {name}=SOURCE replaces it"


def describe_inputs(bundle: Bundle) -> Iterator[str]:
    """Yield a line per model: the queries that use it, and their input."""
    from ..check.contents.input_words import describe_input, input_figures

    for name, model in bundle.manifest.models.items():
        users = [query for query, spec in bundle.manifest.queries.items() if spec.model == name]
        yield f"{', '.join(users)}: {describe_input(input_figures(model))}"


def note_labels(bundle: Bundle) -> str | None:
    """Return a line about queries whose classes have no names; None if there are none."""
    tasks = ("classification", "detection", "segmentation")
    queries = bundle.manifest.queries
    bare = [name for name, query in queries.items() if query.labels is None and query.task in tasks]
    return f"{', '.join(bare)}: none given; classes are reported by number" if bare else None


def warn_of_memory(bundle: Bundle) -> str | None:
    """Return a warning if the workload's memory setting is too small for its largest model; None otherwise."""
    from ..bundles.blob import footprint
    from ..check.contents.inspect import least_memory

    content = bundle.manifest
    least, setting = least_memory(bundle), content.device.memory
    total = sum(footprint(segment.length) for segment in content.segments.values())
    try:
        budget(setting, max(total, least), [least])
    except InputError:
        shown = setting if isinstance(setting, str) else f"{setting / 1e6:.1f} MB"
        needs = f"{shown} is less than the {least / 1e6:.1f} MB that the largest model needs"
        return f"warning: device.memory: {needs}; give at least {-(-least // (1 << 20))}MiB, or min"
    return None
