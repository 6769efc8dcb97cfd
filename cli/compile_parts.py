"""Notes and warnings that ``gemel compile`` prints about feeds, inputs, labels and memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..bundles.budget import budget
from ..errors import FeedError, InputError

if TYPE_CHECKING:
    from ..bundles.reader import Bundle
    from ..workload import Workload

__all__ = ["describe_inputs", "note_labels", "note_variables", "warn_of_feeds", "warn_of_memory"]


def warn_of_feeds(workload: Workload) -> Iterator[str]:
    """Yield a warning for each feed of a workload whose file cannot be found on this machine.

    Cameras and devices are not looked for, because they belong to the machine that runs the bundle.
    """
    from ..frames.source import resolve

    for name, feed in workload.feeds.items():
        if "${" in feed.source and "://" not in feed.source:
            yield f"{name}: its address is filled in when the bundle runs"
        elif "://" not in feed.source and not feed.source.startswith("/dev/"):
            try:
                resolve(name, feed.source, base=workload.root)
            except FeedError as error:
                yield f"warning: {error}; gemel-run --feed {name}=SOURCE replaces it"


def describe_inputs(bundle: Bundle) -> Iterator[str]:
    """Yield a line per model of a bundle: the queries that use the model, and the size and colour of its input."""
    from ..check.contents.input_words import describe_input, input_figures

    for name, model in bundle.manifest.models.items():
        users = [query for query, spec in bundle.manifest.queries.items() if spec.model == name]
        yield f"{', '.join(users)}: {describe_input(input_figures(model))}"


def note_labels(bundle: Bundle) -> str | None:
    """Return a line about the queries of a bundle whose classes have no names; None if there are no such queries."""
    tasks = ("classification", "detection", "segmentation")
    queries = bundle.manifest.queries
    bare = [name for name, query in queries.items() if query.labels is None and query.task in tasks]
    return f"{', '.join(bare)}: none given; classes are reported by number" if bare else None


def note_variables(bundle: Bundle) -> str | None:
    """Return a line about the environment variables that a bundle may now use on this machine; None if there are
    none."""
    from ..bundles.known_variables import remember_variables

    names = [name for name in remember_variables(bundle) if not name.startswith("GEMEL_")]
    if not names:
        return None
    flags = " ".join(f"--env {name}" for name in names)
    return f"{', '.join(names)}: filled in when the bundle runs; another user or machine allows that with {flags}"


def warn_of_memory(bundle: Bundle) -> str | None:
    """Return a warning if a bundle's memory setting is too small for its largest model; None otherwise."""
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
