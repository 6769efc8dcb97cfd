"""``gemel drift``: a bundle, its own samples and its originals, exit status, and mistakes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from threading import Event
from time import time

import pytest
from delta_bundles import noise, retrained
from drift_samples import NOON, put_sample

from gemel.bundles.reader import open_bundle
from gemel.check.drift import bundle_answers, follow
from gemel.check.drift.judge import DriftJudge
from gemel.cli.drift import REVERT_EXIT
from gemel.cli.sample_flags import since_of
from gemel.runtime.decode.results import Class

Call = Callable[..., tuple[int, str, str]]


def test_a_bundle_agrees_with_itself(gemel: Call, bundle: Path, tmp_path: Path) -> None:
    samples = tmp_path / "samples"
    code, _, err = gemel("run", bundle, "--offline", "--samples", samples, "--sample-every", "300ms")
    assert code == 0, err
    flags = ("--json", tmp_path / "d.json", "--metrics", tmp_path / "d.prom")
    # The folder's workload has the same models, and is compiled.
    code, out, err = gemel("drift", bundle, samples, "--originals", bundle.parent / "workload.yaml", *flags)
    assert code == 0, err
    assert "compiled for this time" in out and out.count("holds") == 3
    found = json.loads((tmp_path / "d.json").read_text())
    assert {query: each["accuracy"] for query, each in found["queries"].items()} == {"a": 1.0, "b": 1.0, "c": 1.0}
    assert found["bundle"] == open_bundle(bundle).id and found["left_out"] == {}
    assert 'gemel_drift_verdict{query="a",verdict="holds"} 1.0' in (tmp_path / "d.prom").read_text()


def test_the_exit_status_says_revert(
    gemel: Call, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(10):
        put_sample(tmp_path / "s", number, open_bundle(bundle).id)
    labels = iter([*["wrong", "right"] * 10])

    def answer(_: object, image: object, queries: list[str]) -> dict[str, tuple[Class, ...]]:
        label = next(labels)
        return {query: (Class(label, 0.9),) for query in queries}

    monkeypatch.setattr(bundle_answers.BundleAnswers, "answer", answer)
    code, out, _ = gemel("drift", bundle, tmp_path / "s", "--originals", bundle)
    assert code == REVERT_EXIT and "revert since 2026-11-27 12:0" in out
    assert "query a: its loss began about 2026-11-27T12:00:00Z; " in out
    code, out, _ = gemel("drift", bundle, tmp_path / "s", "--originals", bundle, "--since", "2026-11-27T13:00:00Z")
    assert code == 0 and "left out, before --since: 10, such as yard-2026" in out


def test_it_follows_until_it_is_stopped(
    gemel: Call, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = follow.judge_new

    def judge_new(*given: object, stop: object, **more: object) -> None:
        real(*given, stop=stop, **more)  # type: ignore[arg-type]
        stop.set()  # type: ignore[attr-defined]

    monkeypatch.setattr(follow, "judge_new", judge_new)
    put_sample(tmp_path / "s", 0, open_bundle(bundle).id)
    flags = ("--follow", "--every", "1s", "--metrics", tmp_path / "d.prom")
    code, out, err = gemel("drift", bundle, tmp_path / "s", "--originals", bundle, *flags)
    assert code == 0, err
    assert "query a: holds (before: unknown)" in out
    assert "gemel_drift_samples" in (tmp_path / "d.prom").read_text()


def test_it_follows_the_bundle_of_a_box(
    gemel: Call, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A delta may bring another bundle at any time; its samples are judged by it, and earlier ones not again."""
    box, samples, judged = tmp_path / "box", tmp_path / "s", list[tuple[str, int]]()
    shutil.copytree(bundle, box)
    newer = retrained(bundle, tmp_path / "newer", noise(1e-3))
    put_sample(samples, 0, open_bundle(box).id)
    real = follow.judge_new

    def judge_new(judge: DriftJudge, *given: object, stop: Event, **more: object) -> None:
        real(judge, *given, stop=stop, **more)  # type: ignore[arg-type]
        judged.append((judge.bundle.id, judge.drifts["a"].samples))
        if len(judged) == 1:
            shutil.rmtree(box)
            shutil.copytree(newer, box)
            put_sample(samples, 1, open_bundle(newer).id)
        else:
            stop.set()

    monkeypatch.setattr(follow, "judge_new", judge_new)
    flags = ("--follow", "--every", "1ms", "--json", tmp_path / "d.json")
    code, out, err = gemel("drift", box, samples, "--originals", bundle, *flags)
    assert code == 0, err
    assert judged == [(open_bundle(bundle).id, 1), (open_bundle(newer).id, 1)]
    assert f"{box}: is another bundle now, {open_bundle(newer).id[:12]}, and is judged from here on" in out
    found = json.loads((tmp_path / "d.json").read_text())
    assert (found["bundle"], found["left_out"]) == (open_bundle(newer).id, {})


def test_times_since() -> None:
    for text in ("2026-11-27T12:00:00Z", "2026-11-27 12:00", "2026-11-27T14:00:00+02:00", "1795780800", "1795780800.0"):
        assert since_of(text) == NOON
    assert since_of("2026-11-27") == NOON - 12 * 3600 and since_of(None) == float("-inf")
    assert abs(time() - 7200 - since_of("2h")) < 60


def test_mistakes(gemel: Call, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ((tmp_path / "empty", "--originals", bundle), "has no samples; gemel-run --samples writes them"),
        ((tmp_path / "none", "--originals", bundle), "there is no such folder"),
        (("s", "--originals", bundle, "--since", "noon"), "--since: 'noon' is not allowed: a time such as 2026"),
        (("s", "--originals", bundle, "--window", "soon"), "--window: 'soon' is not allowed: a period such as"),
        (("s", "--originals", bundle, "--metrics", tmp_path / "empty"), "cannot be written: Is a directory"),
    ):
        code, _, err = gemel("drift", bundle, *arguments)
        assert (code, message in err, err.count("\n")) == (2, True, 1), err
    put_sample(tmp_path / "s", 0, "f" * 64)
    code, _, err = gemel("drift", bundle, tmp_path / "s", "--originals", tmp_path / "s" / "originals")
    assert code == 2 and "a bundle of the original models, or their workload.yaml, is expected" in err
    flags = ("--originals", bundle, "--ray", "local", "--backend", "ort-cuda")
    code, _, err = gemel("drift", bundle, tmp_path / "s", *flags)
    assert code == 2 and "--ray: workers answer on CPUs; give --backend with one of ort-cpu, auto-cpu, openvino" in err
