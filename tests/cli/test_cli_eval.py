"""Command ``gemel eval``."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from helpers import call, without

from gemel.bundles.reader import MANIFEST
from gemel.check.evaluation import evaluate as module
from gemel.check.evaluation.evaluate import EvaluationProgress
from gemel.errors import install_hint
from gemel.runtime.loop.summary import Summary

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def evaluate(gemel: Call) -> Call:
    return partial(gemel, "eval")


def test_against_the_unmerged_bundle(evaluate: Call, bundle: Path, tmp_path: Path) -> None:
    unmerged = Path(shutil.copytree(bundle, tmp_path / "unmerged"))
    written = tmp_path / "out" / "eval.json"
    flags = ("--memory", "min,all", "--policy", "gemel", "--seconds", "0.5", "--threads", "1", "--json", written)
    code, out, err = evaluate(bundle, "--against", unmerged, *flags)
    assert (code, err) == (0, "")
    found = json.loads(written.read_text())
    assert [(run["bundle"], run["setting"], run["policy"]) for run in found["runs"]] == [
        ("unmerged", "min", "gemel"),
        ("merged", "min", "gemel"),
        ("unmerged", "all", None),
        ("merged", "all", None),
    ]
    assert found["bundles"]["merged"]["bytes"] == found["bundles"]["unmerged"]["bytes"]
    assert found["reference"]["bundle"] == "unmerged"
    for run in found["runs"]:
        assert {"seconds", "backend", "memory", "queries", "feeds", "swaps", "plan", "mean"} <= set(run)
        for query in run["queries"].values():
            assert query["frames"] == query["processed"] + query["skipped"]
            assert query["accuracy"] is None if query["frames"] == 0 else 0 <= query["accuracy"] <= 1
            assert {"in_sla", "processed_part", "latency_ms"} <= set(query)
    lines = out.splitlines()
    assert [line.split()[0] for line in lines if line.startswith("    live")] == ["live"] * 4
    assert sum(line.split()[:1] == ["mean"] for line in lines) == 2
    assert any(line.startswith(f"min: {found['runs'][0]['memory']['budget'] / 1e6:.1f} MB") for line in lines)
    assert lines[-1].startswith(f"Next: gemel-run {bundle} --memory ")


def test_an_objective(evaluate: Call, bundle: Path, tmp_path: Path) -> None:
    document = json.loads((bundle / MANIFEST).read_text())
    document["queries"]["b"]["sla_ms"] = 250
    (bundle / MANIFEST).write_text(json.dumps(document))
    written = tmp_path / "eval.json"
    flags = ("--memory", "min", "--policy", "gemel", "--seconds", "0.5", "--threads", "1", "--json", written)
    code, out, err = evaluate(bundle, *flags, "--objective", "sum")
    assert (code, err) == (0, "")
    assert json.loads(written.read_text())["objective"] == "sum"
    assert "100 to 250 ms after the frame arrived" in out
    assert out.splitlines()[-1].endswith(" --policy gemel --objective sum")


def test_bad_input(evaluate: Call, bundle: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(bundle, tmp_path / "other"))
    document = json.loads((other / MANIFEST).read_text())
    del document["queries"]["b"]
    (other / MANIFEST).write_text(json.dumps(document))
    for arguments, expected in (
        ((tmp_path / "no",), "not a bundle"),
        ((bundle, "--against", tmp_path / "no"), "not a bundle"),
        ((bundle, "--against", other), "query 'b' is not the same as in"),
        ((bundle, "--policy", "gemel,sharing"), "--policy: 'sharing' is not allowed: one of gemel, nexus"),
        ((bundle, "--policy", ""), "--policy: '' is not allowed"),
        ((bundle, "--objective", "fair"), "--objective: 'fair' is not allowed: one of max-min, sum"),
        (
            (bundle, "--policy", "nexus", "--objective", "sum"),
            "--objective: 'sum' is not allowed with --policy nexus: nexus serves max-min only",
        ),
        (
            (bundle, "--memory", "min", "--objective", "accuracy", "--seconds", "0.2"),
            "objective accuracy: query a has no staleness curve",
        ),
        ((bundle, "--memory", "min,much"), "--memory: 'min,much' is not allowed: bytes such as 64MiB"),
        ((bundle, "--memory", "10"), "the largest model alone needs"),
        ((bundle, "--seconds", "0"), "--seconds: 0 is not allowed: more than 0 is expected"),
        ((bundle, "--seconds", "nan"), "--seconds: nan is not allowed"),
        ((bundle, "--backend", "abacus"), "backend 'abacus' is not available"),
        ((bundle, "--feed", "yard"), "NAME=SOURCE is expected"),
        ((bundle, "--feed", "yard=rtsp://host/1"), "give a recording with --feed yard=FILE"),
        ((bundle, "--json", tmp_path), "cannot be written"),
    ):
        code, _, err = evaluate(*arguments)
        assert (code, len(err.splitlines())) == (2, 1), err
        assert expected in err


def test_a_query_that_failed(evaluate: Call, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Summary, "failures", {"a": "out of order"})
    code, out, _ = evaluate(bundle, "--memory", "all", "--seconds", "0.2", "--threads", "1")
    assert (code, out.splitlines()[-1]) == (1, "failed: bundle, a: out of order")


def test_ctrl_c(evaluate: Call, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, told: EvaluationProgress, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        told("live", "was ended early", 0.5)

    monkeypatch.setattr(module, "evaluate_bundles", interrupted)
    code, out, err = evaluate(bundle)
    assert (code, out, err) == (130, "stopped; nothing was judged\n", "")


def test_without_the_extra(bundle: Path, tmp_path: Path) -> None:
    done = call("gemel", "eval", bundle, **without("pycocotools", path=tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: gemel eval needs packages that are not installed: {install_hint('eval')}\n"


def test_the_light_runtime_evaluates(bundle: Path, tmp_path: Path) -> None:
    environment = without("torch", "onnx", "yaml", "torchmetrics", path=tmp_path)
    flags = ("--memory", "min", "--policy", "nexus", "--seconds", "0.3", "--threads", "1")
    done = call("gemel", "eval", bundle, *flags, **environment)
    assert done.returncode == 0, done.stderr
    assert "of the bundle's own models" in done.stdout
