"""Revert of queries to their original weights, and back: the new bundle takes the place of the old one in one step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import BundleError, InputError, first_line
from .delta_store import DeltaStore
from .known_variables import hand_on_variables
from .manifest import Manifest
from .originals import write_exchanged
from .pull_deltas import PullProgress, pull_deltas
from .reader import Bundle, open_bundle
from .replace_bundle import alone_with, replacing, restore_bundle

__all__ = ["RevertedBundle", "models_to_exchange", "revert_queries"]


@dataclass(frozen=True)
class RevertedBundle:
    """Result of a revert, or of undoing one."""

    bundle: Bundle
    """The new bundle."""
    before: str
    """Id of the bundle that was there before."""
    queries: tuple[str, ...]
    """Queries that were named."""
    along: tuple[str, ...]
    """Queries that were not named, and changed too, because they use one of the models."""
    fetched: int
    """Bytes of the delta that brought the original weights; 0 if the bundle had them."""


def revert_queries(
    path: Path,
    queries: Sequence[str],
    *,
    undo: bool = False,
    key: bytes | None = None,
    progress: PullProgress = lambda here, whole: None,
) -> RevertedBundle:
    """Have queries of a bundle run with their original weights, or with the merged ones again.

    The weights of all other queries stay. The new bundle is written beside its place and then takes the place of the
    old one. A process that is killed and a full disk leave the old bundle. A run that has its files open keeps them.

    Args:
        path: folder of the bundle.
        queries: names of queries. Queries with the same model change together.
        undo: whether to go back to the merged weights.
        key: public ed25519 key that must have signed the delta with the original weights; None to accept any.
        progress: function called while original weights are fetched.

    Raises:
        BackendError: the original weights are elsewhere, and the store does not answer.
        InputError: a query does not exist, has no original weights, or is already as it should become.
        BundleError: the bundle is damaged, is being replaced by another process, or cannot be written.
    """
    restore_bundle(path)
    before = open_bundle(path)
    if not undo and (at := _address(before)) is not None:
        _check_known(path, before.manifest, queries)
        fetched = _fetch(path, at, queries, key, progress)
    else:
        fetched, before = 0, _exchange(path, queries, undo)
    new = open_bundle(path)
    hand_on_variables(before, new)
    models = {new.manifest.queries[name].model for name in queries}
    along = [name for name, query in new.manifest.queries.items() if query.model in models and name not in queries]
    return RevertedBundle(new, before.id, tuple(queries), tuple(along), fetched)


def models_to_exchange(path: Path, content: Manifest, queries: Sequence[str], undo: bool = False) -> tuple[str, ...]:
    """Return the models whose weights change when queries are reverted, or when that is undone.

    Args:
        path: folder of the bundle, for error messages.
        content: manifest of a bundle that has original weights.
        queries: names of queries.
        undo: whether the merged weights are wanted.

    Raises:
        InputError: a query does not exist, has no original weights in the bundle, or is already as it should become.
    """
    _check_known(path, content, queries)
    known = {} if content.originals is None else content.originals.models
    for name in queries:
        other = known.get(content.queries[name].model)
        if undo and (other is None or not other.reverted):
            raise InputError(f"{path}: query {name} is not reverted")
        if not known:
            raise InputError(
                f"{path}: has no original weights of query {name}; gemel-compile --originals puts them there"
            )
        if other is None:
            raise InputError(f"{path}: query {name} has its original weights: the merge did not change its model")
        if not undo and other.reverted:
            raise InputError(f"{path}: query {name} is already reverted to its original weights")
    return tuple(dict.fromkeys(content.queries[name].model for name in queries))


def _check_known(path: Path, content: Manifest, queries: Sequence[str]) -> None:
    """Check that a bundle has queries of the given names.

    Raises:
        InputError: one does not exist.
    """
    for name in queries:
        if name not in content.queries:
            raise InputError(f"{path}: has no query {name!r}; it has {', '.join(content.queries)}")


def _address(bundle: Bundle) -> str | None:
    """Return where the original weights of a bundle are; None if the bundle has them, or knows of none."""
    originals = bundle.manifest.originals
    return None if originals is None or originals.models else originals.at


def _exchange(path: Path, queries: Sequence[str], undo: bool) -> Bundle:
    """Exchange the weights of queries in a bundle that has both; return the bundle as it was before."""
    with alone_with(path):
        old = open_bundle(path)
        models = models_to_exchange(path, old.manifest, queries, undo)
        try:
            with replacing(old.path) as work:
                write_exchanged(old, models, work)
        except OSError as error:
            raise BundleError(f"{path}: cannot be written: {error.strerror or first_line(error)}") from error
    return old


def _fetch(path: Path, at: str, queries: Sequence[str], key: bytes | None, progress: PullProgress) -> int:
    """Fetch the delta with the original weights, and make the bundle with reverted queries; return the delta's size."""
    sizes: list[int] = []

    def finish(old: Bundle, made: Bundle, work: Path) -> None:
        _check_only_adds(old, made)
        write_exchanged(made, models_to_exchange(path, made.manifest, queries), work, old.id)

    store = DeltaStore(at)
    pull_deltas(store, path, key, lambda done: sizes.append(done.bytes), progress, once=True, finish=finish)
    if not sizes:
        raise BundleError(f"{store.shown}: has no delta with the original weights of {path}")
    return sizes[0]


def _check_only_adds(old: Bundle, new: Bundle) -> None:
    """Check that a new bundle differs from an old one in nothing but original weights.

    Raises:
        BundleError: it lacks original weights, or something else differs.
    """
    before, after = old.manifest, new.manifest
    # Added tensors lie behind the others, so that nothing else has to move.
    added = dict.fromkeys(("tensors", "files", "originals"))
    same = before.model_copy(update=added) == after.model_copy(update=added)
    kept = after.tensors.items() >= before.tensors.items() and all(
        after.files.get(name) == spec for name, spec in before.files.items() if name != before.blob
    )
    originals = after.originals
    if not same or not kept or originals is None or not originals.models or after.reverted:
        raise BundleError(f"{old.path}: the delta brings more than original weights, or none; it is not applied")
