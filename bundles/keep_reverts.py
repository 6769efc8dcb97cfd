"""Deltas for a bundle with reverted queries: they start from the bundle without reverts, and the reverts stay.

A merger knows nothing of what a box has reverted. So its delta is applied to the bundle that the box would have without
its reverts, and the same queries are reverted in what comes of it.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import BundleError
from .manifest import ModelSpec
from .originals import write_exchanged
from .reader import Bundle, open_bundle

__all__ = ["merged_id", "revert_again", "reverted_queries", "undo_reverts"]


def merged_id(bundle: Bundle) -> str:
    """Return the id that a bundle has without its reverts, from which the merger's deltas lead on."""
    originals = bundle.manifest.originals
    return bundle.id if originals is None or originals.merged is None else originals.merged


def reverted_queries(bundle: Bundle) -> tuple[str, ...]:
    """Return the queries of a bundle that run with their original weights because they were reverted."""
    content = bundle.manifest
    return tuple(name for name, query in content.queries.items() if query.model in content.reverted)


def undo_reverts(bundle: Bundle, work: Path) -> Bundle:
    """Write the bundle without its reverts into an empty folder, and open it.

    Raises:
        BundleError: the bundle is damaged, or another version of gemel has reverted it, which wrote other bytes.
        OSError: a file cannot be written.
    """
    write_exchanged(bundle, bundle.manifest.reverted, work)
    made = open_bundle(work)
    if made.id != merged_id(bundle):
        names = " ".join(reverted_queries(bundle))
        raise BundleError(
            f"{bundle.path}: another version of gemel has reverted it; first gemel revert {bundle.path} {names} --undo"
        )
    return made


def revert_again(old: Bundle, made: Bundle, work: Path) -> None:
    """Write the bundle that a delta has made into an empty folder, with the queries reverted that are in the old one.

    A query whose model has its original weights in the new bundle anyway needs no revert.

    Args:
        old: bundle with reverted queries.
        made: bundle without reverts that a delta has made.
        work: folder to write to.

    Raises:
        BundleError: the new bundle lacks the original weights of a query.
        OSError: a file cannot be written.
    """
    before, after = old.manifest, made.manifest
    known = {} if after.originals is None else after.originals.models
    again: dict[str, None] = {}
    for name in reverted_queries(old):
        if name not in after.queries:
            continue
        model = after.queries[name].model
        if model in known:
            again[model] = None
        elif _weights(after.models[model]) != _weights(before.models[before.queries[name].model]):
            undo = f"gemel revert {old.path} {name} --undo"
            here = "no original weights of it"
            if after.originals is not None and after.originals.at is not None:
                here, undo = "them elsewhere", f"{undo}, then the delta, then gemel revert {old.path} {name}"
            raise BundleError(
                f"{old.path}: query {name} is reverted, and the bundle that the delta makes has {here}; first {undo}"
            )
    if again:
        write_exchanged(made, tuple(again), work)
        return
    for path in made.path.iterdir():
        path.rename(work / path.name)


def _weights(model: ModelSpec) -> object:
    """Return a value that is equal for models with equal programs and weights."""
    return [(name, stage.program, stage.weights) for name, stage in model.stages.items()]
