"""Staleness curves from ``gemel eval --staleness`` to the plans of ``gemel run``, ``profile`` and ``simulate``."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import write_video

from gemel.bundles.staleness import Staleness, read_curves
from gemel.check.evaluation import staleness_curves
from gemel.check.evaluation.staleness_curves import CurveMeasurement, MeasuredCurve
from gemel.runtime.planning.read import read_profile

Gemel = Callable[..., tuple[int, str, str]]


@pytest.fixture
def curves(tmp_path: Path) -> Path:
    """Return a file of curves of the three queries of the bundle, measured at 10 frames per second."""
    path = tmp_path / "staleness.yaml"
    curve = {"fps": 10, "frames": 100, "curve": [0.9, 0.8, 0.7, 0.5]}
    path.write_text(json.dumps(dict.fromkeys("abc", curve)))
    return path


def test_measured_and_promised(gemel: Gemel, bundle: Path, tmp_path: Path) -> None:
    video, output = write_video(tmp_path / "long.mp4", 64), tmp_path / "out" / "staleness.yaml"
    feeds = ("--feed", f"yard={video}", "--feed", f"gate={video}")
    code, out, err = gemel("eval", bundle, "--staleness", output, "--frames", "60", "--threads", "1", *feeds)
    assert (code, err) == (0, "")
    found = read_curves(output)
    # The feed gate gives 5 frames per second, of which 32 are in the recording.
    assert {name: (each.fps, each.frames, len(each.curve)) for name, each in found.items()} == {
        "a": (10.0, 40, 20),
        "b": (10.0, 40, 20),
        "c": (5.0, 22, 10),
    }
    (row,) = (line.split() for line in out.splitlines() if line.split()[:2] == ["c", "5"])
    assert row[:4] == ["c", "5", "22", "-"] and row[4] == "-" and len(row) == 8
    assert out.splitlines()[-1] == f"Next: gemel-run {bundle} --staleness {output} --objective accuracy --memory 50%"
    flags = ("--objective", "accuracy", "--memory", "min", "--threads", "1", "--frames", "3")
    summary = tmp_path / "summary.json"
    code, _, err = gemel("run", bundle, "--staleness", output, *flags, "--json", summary)
    assert (code, err) == (0, "")
    assert json.loads(summary.read_text())["plan"]["policy"] == "gemel"
    code, _, err = gemel("run", bundle, *flags)
    assert (code, err) == (
        2,
        "error: objective accuracy: query a has no staleness curve, which says how accurate an old answer is; gemel"
        " eval BUNDLE --staleness FILE measures it\n",
    )


def test_queries_without_a_curve_are_named(gemel: Gemel, bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "staleness.json"
    video = write_video(tmp_path / "long.mp4", 45)
    code, out, err = gemel("eval", bundle, "--staleness", output, "--feed", f"yard={video}", "--threads", "1")
    assert (code, err) == (1, "")
    assert read_curves(output).keys() == {"a", "b"}
    assert json.loads(output.read_text()).keys() == {"a", "b"}
    assert out.splitlines()[-1] == (
        "failed: c: feed gate has 6 frames, and 30 are needed at 5 frames per second, so no curve"
    )
    output.unlink()
    code, _, err = gemel("eval", bundle, "--staleness", output, "--threads", "1")
    assert (code, output.exists(), len(err.splitlines())) == (2, False, 1)
    assert err.startswith("error: no curve: query a: feed yard has 12 frames, and 40 are needed")


def test_a_scene_that_repeats_is_named(gemel: Gemel, bundle: Path, tmp_path: Path, monkeypatch: Any) -> None:
    curve = MeasuredCurve(Staleness(fps=10.0, frames=50, curve=(0.5, 1.0)), 7, True)
    monkeypatch.setattr(staleness_curves, "measure_curves", lambda *_, **__: CurveMeasurement({"a": curve}, {}))
    code, out, _ = gemel("eval", bundle, "--staleness", tmp_path / "s.yaml")
    assert code == 0
    assert "rises  a: old answers become more accurate again" in out
    assert ["a", "10", "50", "7", "50.0", "-", "-", "-"] in [line.split() for line in out.splitlines()]


def test_flags_that_are_about_live_runs(gemel: Gemel, bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "staleness.yaml"
    for flags, expected in (
        (
            ("--staleness", file, "--seconds", "5"),
            "--seconds: cannot be given with --staleness, which runs nothing live",
        ),
        (("--staleness", file, "--memory", "min"), "--memory: cannot be given with --staleness"),
        (("--staleness", file, "--cold"), "--cold: cannot be given with --staleness"),
        (("--staleness", file, "--policy", "lru"), "--policy: cannot be given with --staleness"),
        (("--staleness", file, "--accept", "bf16"), "--accept: cannot be given with --staleness"),
        (("--frames", "10"), "--frames: --staleness or --accept is needed with it"),
        (("--staleness", tmp_path), "cannot be written"),
        (("--staleness", file, "--feed", "yard=rtsp://host/1"), "give a recording with --feed yard=FILE"),
    ):
        code, _, err = gemel("eval", bundle, *flags)
        assert (code, len(err.splitlines())) == (2, 1), err
        assert expected in err
    assert not file.exists()


def test_ctrl_c(gemel: Gemel, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> CurveMeasurement:
        os.kill(os.getpid(), signal.SIGINT)
        return CurveMeasurement({}, {})

    monkeypatch.setattr(staleness_curves, "measure_curves", interrupted)
    output = tmp_path / "staleness.yaml"
    assert gemel("eval", bundle, "--staleness", output) == (130, "stopped; no curve was written\n", "")
    assert not output.exists()


@pytest.mark.usefixtures("slow")
def test_a_profile_and_a_simulation(gemel: Gemel, bundle: Path, curves: Path, tmp_path: Path) -> None:
    written, figures = tmp_path / "profile.yaml", tmp_path / "simulation.json"
    code, _, err = gemel("profile", bundle, "-o", written, "--staleness", curves)
    assert (code, err) == (0, "")
    found = {name: query.staleness for name, query in read_profile(written).queries.items()}
    # Query c sees 5 frames per second: an age of one frame is two of the measured ones.
    assert found == {"a": (0.9, 0.8, 0.7, 0.5), "b": (0.9, 0.8, 0.7, 0.5), "c": (0.8, 0.5)}
    code, out, err = gemel("simulate", written, "--policy", "gemel", "--objective", "accuracy", "--seconds", "1")
    assert (code, err) == (0, "")
    assert "% accurate)" in out
    # A file replaces the curves of the profile.
    curves.write_text(json.dumps({name: {"fps": 10, "frames": 9, "curve": [0.25]} for name in "abc"}))
    flags = ("--objective", "mean-accuracy", "--policy", "gemel", "--seconds", "1", "--json", figures)
    assert gemel("simulate", written, "--memory", "min", "--staleness", curves, *flags)[0] == 0
    promised = json.loads(figures.read_text())["policies"]["gemel"]["plan"]["promised"]
    for each in promised.values():
        part = each["fps"] / each["feed_fps"]
        assert each["accuracy"] == pytest.approx(part + 0.25 * (1 - part), abs=0.02)


@pytest.mark.parametrize("command", ["run", "profile"])
def test_curves_of_other_queries_are_refused(gemel: Gemel, bundle: Path, curves: Path, command: str) -> None:
    curves.write_text(curves.read_text().replace('"c"', '"cats"'))
    code, _, err = gemel(command, bundle, "--staleness", curves)
    assert (code, err) == (2, f"error: {curves}: 'cats' is not a query; queries: a, b, c\n")
    code, _, err = gemel(command, bundle, "--staleness", curves.parent / "no.yaml")
    assert (code, err) == (2, f"error: {curves.parent / 'no.yaml'}: cannot be read: no such file\n")


def test_a_simulation_refuses_curves_of_other_queries(gemel: Gemel, curves: Path) -> None:
    paper = Path(__file__).parents[2] / "examples" / "profiles" / "paper.yaml"
    code, _, err = gemel("simulate", paper, "--staleness", curves)
    assert code == 2
    assert err.startswith(f"error: {curves}: 'a' is not a query; queries: crossing, plates")
