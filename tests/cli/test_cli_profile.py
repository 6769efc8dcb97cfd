"""Command ``gemel profile``."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path

import pytest
from helpers import call, without
from profiles import profile as profile_on_paper

from gemel.bundles.reader import Bundle, open_bundle
from gemel.cli.profile import profile_to_yaml
from gemel.runtime.backends.ort_cpu import OrtCpu
from gemel.runtime.loop import device_profile
from gemel.runtime.loop.device_profile import profile_of
from gemel.runtime.loop.measure_times import Times
from gemel.runtime.planning.read import read_profile

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def profile(gemel: Call) -> Call:
    return partial(gemel, "profile")


def test_from_a_bundle_to_a_simulation(
    profile: Call, gemel: Call, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = tmp_path / "out" / "profile.yaml"
    code, out, err = profile(bundle, "-o", written, "--threads", "1", "--memory", "min")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == f"Next: gemel simulate {written}"
    found = read_profile(written)
    assert list(found.queries) == ["a", "b", "c"]
    for name, model in found.models.items():
        (row,) = (line.split() for line in out.splitlines() if line.split()[:1] == [name])
        assert [float(cell) for cell in row[4:8]] == list(model.run_ms.values())
    assert any(line.split()[:2] == ["all", "2"] for line in out.splitlines())
    code, out, err = gemel("simulate", written, "--seconds", "1")
    assert (code, err) == (0, "")
    # The runner finds the same times in the device cache.
    monkeypatch.setattr(device_profile, "measure_times", lambda *_: 1 / 0)
    with OrtCpu(open_bundle(bundle), memory="min", threads=1) as backend:
        assert profile_of(open_bundle(bundle), backend) == found
        assert found.memory == backend.room < sum(backend.segments.values())


def test_always_measured_afresh(profile: Call, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written, ticks = tmp_path / "profile.yaml", count(1)

    def measure_times(_: Bundle, backend: OrtCpu, *rest: object) -> Times:
        run = {"a": {1: 1, 2: 1, 4: 1}, "b": {1: 1}}
        return Times(load=dict.fromkeys(backend.segments, next(ticks)), run=run, as_batch={"a": (2, 4)})

    monkeypatch.setattr(device_profile, "measure_times", measure_times)
    for flags in ((), (), ("--cold",)):
        code, out, _ = profile(bundle, "-o", written, "--threads", "1", *flags)
        assert code == 0
    assert any(line.split()[:1] == ["a"] and line.split()[-2:] == ["2,", "4"] for line in out.splitlines())
    assert read_profile(written).models["a"].as_batch == (2, 4)
    assert {segment.load_ms for segment in read_profile(written).segments.values()} == {3}
    assert "cold" in written.read_text().splitlines()[0]
    cold, warm = sorted(bundle.glob("device-cache/*/profile-1-threads-*.json"))
    assert str(cold) in out
    assert [set(json.loads(file.read_text())["times"]["load"].values()) for file in (cold, warm)] == [{3}, {2}]


def test_the_default_place(profile: Call, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = profile(bundle, "--threads", "1")
    assert (code, out.splitlines()[-1]) == (0, "Next: gemel simulate profile.yaml")
    assert read_profile(Path("profile.yaml")).sla_ms == 100


def test_bad_input(profile: Call, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    for arguments, expected in (
        ((tmp_path / "no",), "not a bundle"),
        ((bundle, "--backend", "abacus"), "backend 'abacus' is not available"),
        ((bundle, "--memory", "much"), "--memory: 'much' is not allowed"),
        ((bundle, "--memory", "10"), "the largest model alone needs"),
        ((bundle, "-o", tmp_path), "cannot be written"),
        ((bundle, "-o", tmp_path / "file" / "profile.yaml"), "cannot be written"),
    ):
        code, _, err = profile(*arguments)
        assert (code, len(err.splitlines())) == (2, 1), err
        assert expected in err
    assert not (tmp_path / "profile.yaml").exists()


def test_the_light_runtime_writes_what_yaml_reads(bundle: Path, tmp_path: Path) -> None:
    written = tmp_path / "profile.yaml"
    environment = without("torch", "onnx", path=tmp_path)
    done = call("gemel", "profile", bundle, "-o", written, "--threads", "1", **environment)
    assert done.returncode == 0, done.stderr
    assert set(read_profile(written).models) == {"a", "b"}


def test_names_and_numbers_that_yaml_reads_as_something_else(tmp_path: Path) -> None:
    models = {"on": ["null", "1e5"], "007": ["null"]}
    tiny = {name: {1: 1e-05, 8: 1e22} for name in models}
    known = profile_on_paper(models, {"1e5": 10**18}, run=tiny, fps={"on": 0.1, "007": 1e-7}, memory="50%")
    written = tmp_path / "profile.yaml"
    written.write_text(profile_to_yaml(known, "Made by hand: for a test."))
    assert read_profile(written) == known
    assert written.read_text().startswith("# Made by hand: for a test.\n")
