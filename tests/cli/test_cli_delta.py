"""The commands ``gemel diff``, ``apply`` and ``pull``: what they print, and a run that goes on with what they made."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from delta_bundles import content_of, noise, retrained
from helpers import write_video
from reloads import Run, compiled

from gemel.bundles.reader import open_bundle

Gemel = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a bundle of two models, and one with retrained weights."""
    folder = tmp_path_factory.mktemp("bundles")
    write_video(folder / "yard.mp4", 30, fps=25)
    old = compiled(folder / "first", "ab")
    return old, retrained(old, folder / "new", noise(1e-3))


@pytest.fixture
def box(bundles: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundles[0], tmp_path / "box" / "bundle"))


def test_there_and_applied(bundles: tuple[Path, Path], box: Path, tmp_path: Path, gemel: Gemel) -> None:
    old, new = bundles
    code, out, err = gemel("diff", old, new, "-o", tmp_path / "step.delta", "--json", tmp_path / "diff.json")
    assert (code, err) == (0, "")
    first, second, last = out.splitlines()
    ids = [open_bundle(each).id[:12] for each in bundles]
    assert first.startswith(f"{tmp_path / 'step.delta'}: 0.0")
    assert first.endswith(f" MB, from bundle {ids[0]} to {ids[1]}")
    assert second.startswith("new: ")
    assert last == f"Next: gemel apply {tmp_path / 'step.delta'} BUNDLE"
    assert json.loads((tmp_path / "diff.json").read_text())["makes"] == open_bundle(new).id

    code, out, err = gemel("apply", tmp_path / "step.delta", box, "--json", tmp_path / "apply.json")
    assert (code, err) == (0, "")
    assert out.splitlines()[0].startswith(f"{box}: bundle {ids[0]} is now {ids[1]}; ")
    assert out.splitlines()[1] == f"Next: gemel reload {box} --port PORT"
    assert json.loads((tmp_path / "apply.json").read_text())["after"] == open_bundle(new).id
    assert content_of(box) == content_of(new)

    code, out, err = gemel("apply", tmp_path / "step.delta", box)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1


def test_rounded_changes(bundles: tuple[Path, Path], box: Path, tmp_path: Path, gemel: Gemel) -> None:
    old, new = bundles
    command = ("diff", old, new, "-o", tmp_path / "step.delta", "--changes", "8bit")
    code, _, err = gemel(*command)
    assert (code, err) == (
        2,
        "error: --changes 8bit and --output-bundle DIR go together: accuracy is measured on that bundle\n",
    )
    code, _, err = gemel(*command, "--output-bundle", new)
    assert (code, err) == (2, f"error: --output-bundle: {new} is one of the two bundles\n")
    code, out, _ = gemel(*command, "--output-bundle", tmp_path / "rounded")
    assert code == 0
    assert "rounded: 0.0" in out
    assert out.splitlines()[-1] == f"Next: gemel eval {tmp_path / 'rounded'}"
    assert gemel("apply", tmp_path / "step.delta", box)[0] == 0
    assert content_of(box) == content_of(tmp_path / "rounded")
    assert content_of(box)["weights.bin"] != content_of(new)["weights.bin"]
    assert gemel("check", tmp_path / "rounded")[0] == 0


def test_pull(bundles: tuple[Path, Path], box: Path, tmp_path: Path, gemel: Gemel) -> None:
    (tmp_path / "deltas").mkdir()
    code, out, err = gemel("pull", tmp_path / "deltas", box, "--json", tmp_path / "pull.json")
    assert (code, out, err) == (0, f"{box}: is up to date\n", "")
    assert json.loads((tmp_path / "pull.json").read_text())["applied"] == []
    assert gemel("diff", *bundles, "-o", tmp_path / "deltas")[0] == 0
    code, out, _ = gemel("pull", tmp_path / "deltas", box, "--json", tmp_path / "pull.json")
    assert code == 0
    assert out.splitlines()[-1] == f"Next: gemel reload {box} --port PORT"
    (step,) = json.loads((tmp_path / "pull.json").read_text())["applied"]
    assert step["after"] == open_bundle(bundles[1]).id
    code, _, err = gemel("pull", tmp_path / "none", box)
    assert (code, err) == (2, f"error: {tmp_path / 'none'}: is no delta and no folder of deltas\n")


@pytest.mark.parametrize("command", ["apply", "pull"])
def test_a_run_goes_on_with_the_new_bundle(
    command: str, bundles: tuple[Path, Path], box: Path, tmp_path: Path, gemel: Gemel
) -> None:
    pytest.importorskip("prometheus_client", reason="needs prometheus-client (the extra service)")
    (tmp_path / "deltas").mkdir()
    assert gemel("diff", *bundles, "-o", tmp_path / "deltas")[0] == 0
    (delta,) = (tmp_path / "deltas").iterdir()
    run = Run(box)
    try:
        run.wait_for("a")
        code, out, err = gemel(command, delta if command == "apply" else delta.parent, box, "--port", str(run.port))
        assert (code, err) == (0, "")
        assert f"{box} runs now" in out
        run.wait_for("a")
        run.wait_for("b")
        assert run.status["reloads"]["done"] == 1
    finally:
        summary = run.end()
    assert not run.sink.errors and not summary.failures
    assert open_bundle(box).id == open_bundle(bundles[1]).id
