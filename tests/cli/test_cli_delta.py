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

from gemel.bundles.delta_format import delta_name
from gemel.bundles.reader import open_bundle
from gemel.bundles.write_delta import write_delta
from gemel.cli import pull
from gemel.errors import BackendError

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
    assert (code, out, err) == (0, f"{box}: is up to date, {tmp_path / 'deltas'} has no delta for it\n", "")
    assert json.loads((tmp_path / "pull.json").read_text())["applied"] == []
    assert gemel("diff", *bundles, "-o", tmp_path / "deltas")[0] == 0
    code, out, _ = gemel("pull", tmp_path / "deltas", box, "--json", tmp_path / "pull.json")
    assert code == 0
    assert out.splitlines()[-1] == f"Next: gemel reload {box} --port PORT"
    (step,) = json.loads((tmp_path / "pull.json").read_text())["applied"]
    assert step["after"] == open_bundle(bundles[1]).id
    code, _, err = gemel("pull", tmp_path / "none", box)
    assert (code, err) == (2, f"error: {tmp_path / 'none'}: is no delta and no folder of deltas\n")


def test_pull_follows_a_folder(
    bundles: tuple[Path, Path], box: Path, tmp_path: Path, gemel: Gemel, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, reloads = tmp_path / "deltas", list[str]()
    folder.mkdir()
    damaged = folder / delta_name(open_bundle(bundles[1]).id)

    def publish(pauses: int) -> None:
        """Between two looks: a delta, then nothing twice, then one that is damaged, twice; it is taken away again."""
        if pauses == 1:
            write_delta(open_bundle(bundles[0]), open_bundle(bundles[1]), folder)
        elif pauses == 4:
            damaged.write_bytes(b"no delta")
        elif pauses == 6:
            damaged.unlink()

    def reload(port: int, bundle: Path, *_: object) -> None:
        reloads.append(open_bundle(bundle).id)
        if len(reloads) == 1:
            raise BackendError("nobody answers")

    monkeypatch.setattr(pull, "Stop", lambda: StopAfter(7, publish))
    monkeypatch.setattr(pull, "reload_command", reload)
    flags = ("--follow", "--every", "1s", "--port", "1", "--json", tmp_path / "pull.json")
    code, out, err = gemel("pull", folder, box, *flags)
    assert (code, err) == (0, "")
    # A reload that failed is tried again, and a trouble that stays is said once.
    assert reloads == [open_bundle(bundles[1]).id] * 2
    applied, away, trouble = out.splitlines()
    assert applied.startswith(f"{box}: bundle ") and away == "nobody answers"
    assert trouble.startswith(str(damaged))
    (step,) = json.loads((tmp_path / "pull.json").read_text())["applied"]
    assert step["after"] == open_bundle(bundles[1]).id

    code, _, err = gemel("pull", next(folder.iterdir()), box, "--follow")
    assert (code, "a folder of deltas is expected" in err) == (2, True)


class StopAfter:
    """Stand-in for :class:`gemel.console.Stop`: stops after some pauses, and tells a function the number of each."""

    def __init__(self, most: int, told: Callable[[int], None]) -> None:
        self.event, self._most, self._told, self._pauses = self, most, told, 0

    def __enter__(self) -> StopAfter:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def check(self) -> None:
        pass

    def is_set(self) -> bool:
        return self._pauses >= self._most

    def wait(self, seconds: float) -> None:
        self._pauses += 1
        self._told(self._pauses)


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
        # Another thread of this process, the run, may log that it goes on with the new bundle.
        assert code == 0, err
        assert f"{box} runs now" in out
        run.wait_for("a")
        run.wait_for("b")
        assert run.status["reloads"]["done"] == 1
    finally:
        summary = run.end()
    assert not run.sink.errors and not summary.failures
    assert open_bundle(box).id == open_bundle(bundles[1]).id
