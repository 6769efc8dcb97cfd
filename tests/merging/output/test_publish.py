"""Publishing of a merge's steps: boxes that follow get each of them, whenever the merge is killed."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from delta_bundles import content_of, noise, retrained, two_bundles

from gemel.bundles.delta_format import delta_name
from gemel.bundles.delta_store import DeltaStore
from gemel.bundles.pull_deltas import pull_deltas
from gemel.bundles.reader import MANIFEST, open_bundle
from gemel.bundles.replace_bundle import replacing
from gemel.bundles.revert_bundle import revert_queries
from gemel.compiler.compile import FinishBundle
from gemel.errors import BundleError
from gemel.merging.output import publish
from gemel.merging.output.publish import Publisher

Steps = tuple[Path, Path, Path]


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Steps:
    """Return three compiled bundles, which no test may change: what a merge has written one after the other."""
    folder = tmp_path_factory.mktemp("steps")
    first, second = two_bundles(folder)
    return first, second, retrained(second, folder / "third", noise(1e-3))


@pytest.fixture(autouse=True)
def compile_one_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the path of a compiled bundle stand for the workload that it is compiled from."""

    def compile_workload(source: Path, target: Path, finish: FinishBundle | None = None) -> None:
        with replacing(target) as work:
            if finish is None:
                shutil.copytree(source, work, dirs_exist_ok=True)
            else:
                finish(open_bundle(source), work)

    monkeypatch.setattr(publish, "load_workload", lambda path: path)
    monkeypatch.setattr(publish, "compile_workload", compile_workload)


def followed(box: Path, folder: Path) -> dict[str, str]:
    """Let a box follow a folder of deltas, and return the content of its bundle."""
    pull_deltas(DeltaStore(str(folder)), box)
    return content_of(box)


def test_boxes_that_follow_get_each_step(steps: Steps, tmp_path: Path) -> None:
    publisher, folder = Publisher(tmp_path / "out"), tmp_path / "out"
    assert publisher.empty
    assert publisher.publish(steps[0]) is None
    assert not publisher.empty
    boxes = [shutil.copytree(folder / "bundle", tmp_path / f"box{number}") for number in range(2)]
    for step in steps[1:]:
        done = publisher.publish(step)
        assert done is not None
        assert done.path.parent == folder
        assert followed(boxes[0], folder) == content_of(step) == content_of(folder / "bundle")
    # A box that was away takes both deltas.
    assert followed(boxes[1], folder) == content_of(steps[2])
    assert publisher.publish(steps[2]) is None
    assert len(list(folder.glob("*.delta"))) == 2
    assert not (folder / "next-bundle").exists()


def test_a_search_that_comes_back_to_an_earlier_bundle(steps: Steps, tmp_path: Path) -> None:
    publisher, folder = Publisher(tmp_path / "out"), tmp_path / "out"
    publisher.publish(steps[0])
    box = shutil.copytree(folder / "bundle", tmp_path / "box")
    publisher.publish(steps[1])
    followed(box, folder)
    publisher.publish(steps[0])
    assert followed(box, folder) == content_of(steps[0])
    assert followed(shutil.copytree(steps[0], tmp_path / "other"), folder) == content_of(steps[0])
    publisher.publish(steps[2])
    assert followed(box, folder) == content_of(steps[2])


def test_a_new_report_alone_is_no_step(steps: Steps, tmp_path: Path) -> None:
    publisher, folder = Publisher(tmp_path / "out"), tmp_path / "out"
    publisher.publish(steps[0])
    report = tmp_path / "report"
    with replacing(report) as work:
        shutil.copytree(steps[0], work, dirs_exist_ok=True)
        document = json.loads((work / MANIFEST).read_text())
        (work / "merge.json").write_text("{}")
        document["files"]["merge.json"] = {"bytes": 2, "sha256": hashlib.sha256(b"{}").hexdigest()}
        (work / MANIFEST).write_text(json.dumps(document))
    assert publisher.publish(report, report=False) is None
    assert content_of(folder / "bundle") == content_of(steps[0])
    assert publisher.publish(report) is not None
    assert content_of(folder / "bundle") == content_of(report)


def test_boxes_that_can_revert(steps: Steps, tmp_path: Path) -> None:
    first, merged = steps[0], retrained(steps[0], tmp_path / "merged", noise(1e-3))
    folder, box = tmp_path / "out", tmp_path / "box"
    publisher = Publisher(folder, originals=first)
    publisher.publish(first)
    # Nothing is merged yet, so there is nothing to revert to.
    assert followed(shutil.copytree(folder / "bundle", box), folder) == content_of(first)
    publisher.publish(merged)
    followed(box, folder)
    revert_queries(box, ["a"])
    assert open_bundle(box).manifest.models["a"].weights == open_bundle(first).manifest.models["a"].weights
    # Where the merger reverts its own copy, too, the way leads on from there, for a merger that is started again, too.
    revert_queries(folder / "bundle", ["a"])
    publisher = Publisher(folder, originals=first)
    publisher.publish(retrained(merged, tmp_path / "again", noise(1e-3)))
    assert followed(box, folder) == content_of(folder / "bundle")
    assert not open_bundle(box).manifest.reverted
    revert_queries(box, ["b"])


@pytest.mark.parametrize("place", ["write_delta", "apply_delta", "compile_workload"])
def test_a_merge_that_is_killed_goes_on_publishing(
    place: str, steps: Steps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher, folder = Publisher(tmp_path / "out"), tmp_path / "out"
    publisher.publish(steps[0])
    box = shutil.copytree(folder / "bundle", tmp_path / "box")

    def killed(function: Callable[..., object]) -> Callable[..., object]:
        def run(*arguments: object, **options: object) -> object:
            if place != "apply_delta":
                function(*arguments, **options)
            raise KeyboardInterrupt

        return run

    with monkeypatch.context() as patch:
        patch.setattr(publish, place, killed(getattr(publish, place)))
        with pytest.raises(KeyboardInterrupt):
            publisher.publish(steps[1])
    followed(box, folder)
    # The next merge ends with other weights.
    Publisher(folder).publish(steps[2])
    assert followed(box, folder) == content_of(steps[2]) == content_of(folder / "bundle")


def test_a_published_bundle_that_is_damaged_is_named(steps: Steps, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    Publisher(folder).publish(steps[0])
    (folder / delta_name(open_bundle(steps[0]).id)).write_bytes(b"no delta")
    with pytest.raises(BundleError, match=r"\.delta"):
        Publisher(folder)
