"""The command ``gemel place``: table, JSON, bundles for boxes, exit status, and one line about bad input."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import write_video
from reloads import compiled
from reverts import with_address, with_originals

from gemel.bundles.originals import originals_bytes
from gemel.bundles.reader import open_bundle

Gemel = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return two bundles of the feeds ``yard`` and ``gate``, whose models all have the same convolutions."""
    folder = tmp_path_factory.mktemp("bundles")
    write_video(folder / "yard.mp4", 30, fps=25)
    gate = {"yard": {"source": "gate.mp4", "fps": 10}}
    one, two = compiled(folder / "one", "ab"), compiled(folder / "two", "cd", feeds=gate)
    path = two / "manifest.json"
    document = json.loads(path.read_text())
    document["feeds"] = {"gate": document["feeds"]["yard"]}
    for query in document["queries"].values():
        query.update(feed="gate", min_fps=1.0)
    path.write_text(json.dumps(document))
    return one, two


@pytest.fixture
def boxes(tmp_path: Path) -> Path:
    return write_boxes(tmp_path, "{name: east, memory: 100KB}", "{name: west, memory: 100KB, feeds: [gate]}")


def write_boxes(folder: Path, *items: str) -> Path:
    path = folder / "boxes.yaml"
    path.write_text('schema_version: "1"\nboxes:\n' + "".join(f"- {item}\n" for item in items))
    return path


def write_profile(path: Path, *queries: str, ms: float = 20.0) -> Path:
    """Write a profile in which queries at 10 frames a second run ``ms`` milliseconds on a frame."""
    query = {"model": "m", "fps": 10, "min_fps": 1}
    models = {"m": {"segments": ["s"], "run_ms": {"1": ms}}}
    document = {"segments": {"s": {"bytes": 1}}, "models": models, "queries": dict.fromkeys(queries, query)}
    path.write_text(json.dumps(document))
    return path


def test_one_box_holds_what_shares(bundles: tuple[Path, Path], boxes: Path, tmp_path: Path, gemel: Gemel) -> None:
    profiles = [write_profile(tmp_path / f"{names}.yaml", *names) for names in ("ab", "cd")]
    flags = ("--profile", profiles[0], "--profile", profiles[1], "-o", tmp_path / "out" / "plan.json")
    code, out, err = gemel("place", *bundles, "--boxes", boxes, *flags, "--split", tmp_path / "split")
    assert (code, err) == (0, "")
    # All queries share, and those of the feed gate must be in the west.
    lines = [line.split() for line in out.splitlines()]
    assert ["east", "-", "0.00", "0.10", "0.00", "1", "0.00", "-"] in lines
    assert ["west", "a,", "b,", "c,", "d", "0.02", "0.10", "0.80", "1", "0.08", "73.6%"] in lines
    assert any(line.startswith("proven optimal, in ") for line in out.splitlines())
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert plan["boxes"]["west"]["queries"] == ["a", "b", "c", "d"]
    assert plan["boxes"]["west"]["load"] == 0.8
    assert (plan["left_out"], plan["proven"], plan["gap"]) == ({}, True, 0.0)

    assert [path.name for path in (tmp_path / "split").iterdir()] == ["west"]
    content = open_bundle(tmp_path / "split" / "west").manifest
    assert list(content.queries) == ["a", "b", "c", "d"]
    assert content.device.memory == 100_000
    assert sum(tensor.length for tensor in content.tensors.values()) == plan["boxes"]["west"]["bytes"]
    assert gemel("check", tmp_path / "split" / "west")[0] == 0


def test_what_becomes_of_original_weights(
    bundles: tuple[Path, Path], boxes: Path, tmp_path: Path, gemel: Gemel
) -> None:
    originals = compiled(tmp_path / "one", "ab", changed="ab"), compiled(tmp_path / "two", "cd", changed="cd")
    both = with_originals(bundles[0], originals[0], tmp_path / "both")
    away = with_address(bundles[1], originals[1], tmp_path / "away", tmp_path / "deltas")
    code, out, _ = gemel("place", both, away, "--boxes", boxes, "--memory-only", "--split", tmp_path / "split")
    assert code == 0
    made = open_bundle(tmp_path / "split" / "west").manifest
    assert f"west: 0.02 MB, 4 queries; {originals_bytes(made) / 1e6:.2f} MB more for gemel revert, not loaded" in out
    assert made.originals is not None and made.originals.models.keys() == {"a", "b"}
    assert out.count("its original weights are elsewhere") == 1 and f"{away}: its original weights are elsewhere" in out


def test_left_out_is_named_and_is_the_exit_status(bundles: tuple[Path, Path], tmp_path: Path, gemel: Gemel) -> None:
    boxes = write_boxes(
        tmp_path, "{name: east, memory: 100KB}", "{name: west, memory: 100KB, speed: 0.5, feeds: [gate]}"
    )
    profile = write_profile(tmp_path / "profile.yaml", *"abcd", ms=40.0)
    command = ("place", *bundles, "--boxes", boxes, "--profile", profile)
    code, out, _ = gemel(*command)
    assert code == 3
    assert "d: left out; west lacks 0.3 of load" in out.splitlines()
    assert "ignoring sharing: places 3 of 4 queries, in " in out
    code, out, _ = gemel(*command, "--rate", "min")
    assert code == 0
    assert "left out" not in out
    code, out, _ = gemel("place", *bundles, "--boxes", boxes, "--memory-only")
    assert code == 0
    assert "load" not in out


def test_a_query_that_fits_on_no_box(bundles: tuple[Path, Path], tmp_path: Path, gemel: Gemel) -> None:
    boxes = write_boxes(tmp_path, "{name: east, memory: 10KB}")
    code, out, _ = gemel("place", *bundles, "--boxes", boxes, "--memory-only", "--split", tmp_path / "split")
    assert code == 3
    lacks = open_bundle(bundles[0]).manifest.models["a"].bytes - 10_000
    shown = f"{lacks / 1e6:.2f} MB" if lacks >= 10_000 else f"{lacks} bytes"
    for name in "abcd":
        assert f"{name}: fits on no box; an empty east lacks {shown} of memory" in out.splitlines()
    assert not (tmp_path / "split").exists()


def test_the_heuristic_can_be_asked_for(bundles: tuple[Path, Path], boxes: Path, gemel: Gemel) -> None:
    code, out, _ = gemel("place", *bundles, "--boxes", boxes, "--memory-only", "--heuristic", "--seconds", "5")
    assert code == 0
    # Every part is once on the boxes, which needs no solver to be seen.
    assert "proven optimal" in out


def test_bad_input(bundles: tuple[Path, Path], boxes: Path, tmp_path: Path, gemel: Gemel) -> None:
    one, two = bundles
    copy = Path(shutil.copytree(one, tmp_path / "copy"))
    profile = write_profile(tmp_path / "profile.yaml", *"ab")
    plain = ("--boxes", boxes, "--memory-only")
    (tmp_path / "west").write_text("")
    (tmp_path / "file").write_text("")
    twice = write_boxes(tmp_path, "{name: east, memory: 1MB}", "{name: east, memory: 1MB}")
    (tmp_path / "empty").mkdir()
    boxes = write_boxes(tmp_path / "empty", "{name: copy, memory: 1MB}")
    for arguments, message in (
        ((one, copy, *plain), f"query 'a' is in {one} and in {copy}; names must be unique"),
        ((one, one, *plain), f"{one}: is given twice"),
        (
            (one, "--boxes", twice, "--memory-only"),
            f"{twice}:4: boxes[1].name: two boxes are called 'east'; names must",
        ),
        ((one.parent, *plain), f"{one.parent}: is the folder of a workload, not of a bundle; first compile"),
        ((one.parent / "workload.yaml", *plain), f"{one.parent / 'workload.yaml'}: is a workload, not the folder of a"),
        ((tmp_path / "empty", *plain), f"{tmp_path / 'empty'}: not a bundle (no manifest.json); gemel-compile writes"),
        ((one, "--boxes", tmp_path / "none.yaml"), f"{tmp_path / 'none.yaml'}: cannot be read: No such file"),
        ((one, "--boxes", boxes), "no run times of a, b: measure them with gemel profile "),
        (
            (one, two, "--boxes", boxes, "--profile", profile),
            f"no run times of c, d: measure them with gemel profile {two}",
        ),
        ((one, "--boxes", boxes, "--profile", one), f"{one}: is a bundle, not a profile; "),
        (
            (one, "--boxes", boxes, "--memory-only", "--profile", profile),
            "--memory-only: run times do not count; leave out --profile and --rate",
        ),
        (
            (one, "--boxes", boxes, "--memory-only", "--split", tmp_path / "file"),
            f"--split: {tmp_path / 'file'} is not a folder",
        ),
        (
            (copy, "--boxes", boxes, "--memory-only", "--split", tmp_path),
            f"--split: {copy} would be replaced by the bundle of box copy",
        ),
        ((one, "--boxes", boxes, "--memory-only", "-o", tmp_path), f"{tmp_path}: cannot be written: Is a directory"),
    ):
        code, out, err = gemel("place", *arguments)
        assert (code, out) == (2, ""), err
        assert err.startswith(f"error: {message}") and err.count("\n") == 1, err


def test_no_bundle_and_no_boxes(bundles: tuple[Path, Path], boxes: Path, gemel: Gemel) -> None:
    assert gemel("place", "--boxes", boxes)[0] == 2
    assert gemel("place", bundles[0])[0] == 2
