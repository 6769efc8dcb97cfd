"""Deltas of a merger that knows of no revert, on boxes that have reverted queries: the reverts stay."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from delta_bundles import content_of, delta_between, noise, opened, retrained
from helpers import write_video
from reloads import compiled
from reverts import answers, with_address, with_originals

from gemel.bundles.apply_delta import apply_delta
from gemel.bundles.delta_store import DeltaStore
from gemel.bundles.keep_reverts import merged_id
from gemel.bundles.pull_deltas import pull_deltas
from gemel.bundles.reader import MANIFEST, open_bundle
from gemel.bundles.revert_bundle import revert_queries
from gemel.bundles.write_delta import write_delta
from gemel.errors import BundleError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of bundles: ``first`` and its successor ``second`` with retrained weights, both with originals.

    The merge has changed the models a and b. Between the two lies a delta, in ``deltas``.
    """
    folder = tmp_path_factory.mktemp("reverts")
    write_video(folder / "yard.mp4")
    merged, original = compiled(folder / "merged", "abc"), compiled(folder / "original", "abc", changed="ab")
    with_originals(merged, original, folder / "first")
    with_originals(retrained(merged, folder / "next", noise(0.1)), original, folder / "second")
    (folder / "deltas").mkdir()
    write_delta(*opened(folder / "first", folder / "second"), folder / "deltas")
    return folder


@pytest.fixture
def box(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "first", tmp_path / "box" / "bundle"))


def test_reverts_stay(made: Path, box: Path) -> None:
    first = open_bundle(box).id
    revert_queries(box, ["b"])
    revert_queries(box, ["a"])
    revert_queries(box, ["a"], undo=True)
    assert merged_id(open_bundle(box)) == first != open_bundle(box).id
    assert pull_deltas(DeltaStore(str(made / "deltas")), box) == 1
    now = open_bundle(box)
    assert now.manifest.reverted == {"b"} and merged_id(now) == open_bundle(made / "second").id
    assert answers(box, "abc") == {**answers(made / "second", "abc"), **answers(made / "original" / "bundle", "b")}
    assert sorted(path.name for path in box.parent.iterdir()) == ["bundle"]
    assert pull_deltas(DeltaStore(str(made / "deltas")), box) == 0
    # A merger that reverts its own copy has the same bundle, and without the revert the box has the merger's.
    far = Path(shutil.copytree(made / "second", box.parent / "far"))
    assert revert_queries(far, ["b"]).bundle.id == now.id
    assert revert_queries(box, ["b"], undo=True).bundle.id == open_bundle(made / "second").id


def test_a_delta_from_the_reverted_bundle_goes_first(made: Path, box: Path, tmp_path: Path) -> None:
    revert_queries(box, ["b"])
    deltas = Path(shutil.copytree(made / "deltas", tmp_path / "deltas"))
    write_delta(*opened(box, made / "second"), deltas)
    assert pull_deltas(DeltaStore(str(deltas)), box) == 1
    assert open_bundle(box).id == open_bundle(made / "second").id


def test_a_delta_that_was_applied(made: Path, box: Path) -> None:
    (delta,) = (made / "deltas").iterdir()
    revert_queries(box, ["b"])
    apply_delta(delta, box)
    with pytest.raises(BundleError, match="is already the bundle"):
        apply_delta(delta, box)


def test_what_cannot_stay_is_refused(made: Path, box: Path, tmp_path: Path) -> None:
    revert_queries(box, ["b"])
    before = content_of(box)

    def refused(new: Path, message: str) -> None:
        with pytest.raises(BundleError, match=message):
            apply_delta(delta_between(made / "first", new, tmp_path / "step"), box)
        assert content_of(box) == before and [path.name for path in box.parent.iterdir()] == ["bundle"]

    lacks = "query b is reverted, and the bundle that the delta makes has no original weights of it; first gemel revert"
    refused(made / "next", f"{lacks} {box} b --undo$")
    away = with_address(made / "next", made / "original" / "bundle", tmp_path / "away", tmp_path / "elsewhere")
    refused(away, "has them elsewhere; first .* b --undo, then the delta, then gemel revert .* b$")
    # A revert by another version of gemel, which cannot be undone to the last byte.
    document = json.loads((box / MANIFEST).read_text())
    document["originals"]["merged"] = open_bundle(made / "second").id
    (box / MANIFEST).write_text(json.dumps(document))
    before = content_of(box)
    with pytest.raises(BundleError, match=rf"another version of gemel has reverted it; first gemel revert {box} b --u"):
        apply_delta(delta_between(made / "second", made / "first", tmp_path / "back"), box)
    assert content_of(box) == before


def test_a_query_that_is_private_now_needs_no_revert(made: Path, box: Path, tmp_path: Path) -> None:
    revert_queries(box, ["a", "b"])
    private = made / "original" / "bundle"
    apply_delta(delta_between(made / "first", private, tmp_path / "step"), box)
    assert open_bundle(box).id == open_bundle(private).id


def test_originals_that_are_elsewhere(made: Path, tmp_path: Path) -> None:
    """The merger's deltas lead on from the bundle without original weights."""
    pytest.importorskip("fsspec", reason="needs fsspec (the extra pull)")
    box = with_address(
        made / "merged" / "bundle", made / "original" / "bundle", tmp_path / "box", tmp_path / "elsewhere"
    )
    first = open_bundle(box).id
    revert_queries(box, ["b"])
    assert merged_id(open_bundle(box)) == first
