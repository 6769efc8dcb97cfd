"""Samples are judged by workers of a Ray cluster, which find the bundle on their machine or are sent it."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pytest
from drift_samples import put_sample

from gemel.bundles.reader import MANIFEST, Bundle, open_bundle
from gemel.check.drift.bundle_answers import BundleAnswers
from gemel.check.drift.follow import judge_new
from gemel.check.drift.judge import DriftJudge
from gemel.check.drift.ray_answers import RayAnswers, RayCluster, _Worker
from gemel.errors import BackendError, MissingExtraError
from gemel.runtime.sinks.sample_files import open_samples


def test_ray_finds_what_one_process_finds(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")
    monkeypatch.setattr(ray, "init", partial(ray.init, num_cpus=2))
    opened = open_bundle(bundle)
    for number in range(6):
        put_sample(tmp_path, number, opened.id, brightness=40 * number)
    # The worker fails on this one, as this process does.
    put_sample(tmp_path, 6, opened.id, brightness=0, answers={"c": [], "a": []})
    store = open_samples(str(tmp_path))
    with BundleAnswers(opened) as one:
        alone = DriftJudge(one, one)
        judge_new(alone, store)
    with RayCluster("local") as cluster:
        assert cluster.at_once == 2
        with pytest.raises(BackendError, match=r"--ray: a worker cannot run .*bundle: .*BackendError: cuda: "):
            RayAnswers(opened, cluster, "ort-cuda")
        with RayAnswers(opened, cluster) as ours, RayAnswers(opened, cluster) as theirs:
            spread = DriftJudge(ours, theirs)
            judge_new(spread, store)
            # A worker that is lost comes back, and its frame is answered.
            again = DriftJudge(ours, theirs)
            for worker in ours._workers:
                ray.kill(worker, no_restart=False)
            judge_new(again, store)
    for judge in (spread, again):
        assert judge.left_out == alone.left_out
        for query, drift in judge.drifts.items():
            assert (drift.samples, drift.judged, drift.given) == (
                alone.drifts[query].samples, alone.drifts[query].judged, alone.drifts[query].given,
            )  # fmt: skip
    assert spread.drifts["a"].judged >= 6


def test_a_worker_elsewhere_gets_the_bundle(bundle: Path, tmp_path: Path) -> None:
    opened = open_bundle(bundle)
    files = {name: (bundle / name).read_bytes() for name in (MANIFEST, *opened.manifest.files)}
    for path in (tmp_path / "none", bundle):
        digest = opened.id if path == bundle else "0" * 64
        found = _Worker(path, digest, files, None, 1)._answers.bundle
        assert (found.path == bundle) == (path == bundle) and isinstance(found, Bundle) and found.id == opened.id


def test_without_ray_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"gemel drift --ray .* pip install '\.\[ray\]'"):
        RayCluster("local")
