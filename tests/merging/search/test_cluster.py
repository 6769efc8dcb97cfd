"""Tests that trials on Ray have the same results as in one process."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from helpers import keep_images

from gemel.errors import GemelError, MissingExtraError
from gemel.merging.layers.sharing import SharingMap
from gemel.merging.merge import Listener, MergeOptions, merge_workload
from gemel.merging.search.cluster import Cluster
from gemel.merging.search.search import Job
from gemel.merging.strategies import SearchSettings
from gemel.merging.training.subjects import Subject
from gemel.merging.training.training import Recipe
from gemel.merging.training.trial import Start, Trial
from gemel.workload import load_workload


class Lines(Listener):
    """Listener that notes the titles of trials and counts its waits."""

    def __init__(self) -> None:
        self.trials: list[str] = []
        self.waited = 0

    def trial(self, trial: Trial) -> None:
        self.trials.append(trial.group)

    def waiting(self) -> None:
        self.waited += 1


@pytest.fixture
def beside(trained: Path) -> Iterator[Path]:
    """Return the folder of a workload whose models come from a module that only this process can import."""
    (trained / "beside_net.py").write_text(
        "from gemel.workload.zoo.cifar_resnet import CifarResNet\n\n"
        "class Net(CifarResNet):\n"
        "    def __init__(self, depth, num_classes):\n"
        "        super().__init__((depth - 2) // 6, num_classes)\n"
    )
    document = json.loads((trained / "workload.yaml").read_text())
    for query in document["queries"]:
        query["model"]["factory"] = "beside_net:Net"
    (trained / "workload.yaml").write_text(json.dumps(document))
    path = list(sys.path)
    yield trained
    sys.path[:] = path
    sys.modules.pop("beside_net", None)


def test_ray_finds_what_one_process_finds(beside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")
    # Nearly all the time goes into importing PyTorch in the workers; with one CPU, one worker runs all jobs.
    monkeypatch.setattr(ray, "init", partial(ray.init, num_cpus=1))
    # Enough images for lower bounds at the target; one image is less than the tolerance of the accuracies below.
    keep_images(beside, 70)
    trained, workload = beside, load_workload(beside / "workload.yaml")
    options = MergeOptions(settings=SearchSettings(steps=8, batch=50), device="cpu")
    alone = merge_workload(workload, trained / "alone", options)
    lines = Lines()
    spread = merge_workload(workload, trained / "spread", replace(options, ray="local"), lines)
    assert (trained / "spread" / "beside_net.py").is_file()
    assert len(lines.trials) == len(spread.trials)
    assert lines.waited

    def sharing(report: Any) -> list[Any]:
        return [tensor.uses for tensor in report.shared]

    assert sharing(spread) == sharing(alone) != []
    assert [(trial.group, trial.accepted) for trial in spread.trials] == [
        (trial.group, trial.accepted) for trial in alone.trials
    ]
    assert {name: found.reached for name, found in spread.queries.items()} == pytest.approx(
        {name: found.reached for name, found in alone.queries.items()}, abs=0.02
    )


def test_without_ray_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"gemel merge --ray .* pip install '\.\[ray\]'"):
        Cluster("local", {})


class Broken:
    """Fake of Ray in which every trial fails.

    Args:
        error: exception that a trial raises.
    """

    class exceptions:  # noqa: N801
        class RayError(Exception):
            pass

        class RayTaskError(RayError):
            cause = GemelError("query a: no object to judge by")

    def __init__(self, error: type[Exception]) -> None:
        self._error, self.down = error, False

    def init(self, **_: object) -> None:
        pass

    def shutdown(self) -> None:
        self.down = True

    def put(self, value: Mapping[str, Subject]) -> Mapping[str, Subject]:
        return value

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 5.0}

    def remote(self, **resources: object) -> Callable[..., Any]:
        self.resources = resources

        class Task:
            @staticmethod
            def remote(*_: object) -> object:
                return object()

        return lambda run: Task

    def wait(self, references: list[object], **_: object) -> tuple[list[object], list[object]]:
        return references, []

    def get(self, references: list[object]) -> None:
        raise self._error("worker died\nand a page of text")


@pytest.mark.parametrize(
    ("error", "message"),
    [(Broken.exceptions.RayTaskError, "query a: no object to judge by"), (Broken.exceptions.RayError, "worker died$")],
)
def test_a_trial_that_fails_elsewhere_is_one_line(
    error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = Broken(error)
    monkeypatch.setitem(sys.modules, "ray", ray)
    job = Job(Trial("test", SharingMap(), frozenset(), Start("keep"), Recipe(1)), {}, SharingMap())
    with pytest.raises(GemelError, match=message), Cluster("local", {}) as cluster:
        cluster.execute([job, job])
    assert ray.down
    # Two trials at once on five CPUs get two CPUs each.
    assert ray.resources == {"num_cpus": 2, "num_gpus": 0, "max_retries": 2}


def test_who_waits_may_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = Broken(Exception)
    monkeypatch.setitem(sys.modules, "ray", ray)

    def stop() -> None:
        raise KeyboardInterrupt

    job = Job(Trial("test", SharingMap(), frozenset(), Start("keep"), Recipe(1)), {}, SharingMap())
    with pytest.raises(KeyboardInterrupt), Cluster("local", {}, waiting=stop) as cluster:
        cluster.execute([job])
    assert ray.down


class Slow(Broken):
    """Fake of Ray in which no trial ever ends."""

    def __init__(self) -> None:
        super().__init__(Exception)
        self.cancelled: list[object] = []

    def wait(self, references: list[object], **_: object) -> tuple[list[object], list[object]]:
        return [], references

    def cancel(self, reference: object) -> None:
        self.cancelled.append(reference)


def test_jobs_that_wait_for_their_turn_do_not_outlive_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = Slow()
    monkeypatch.setitem(sys.modules, "ray", ray)
    job = Job(Trial("test", SharingMap(), frozenset(), Start("keep")), {}, SharingMap())
    with Cluster("local", {}, deadline=monotonic() - 1) as cluster:
        assert cluster.execute([job, job, job]) is None
    assert len(ray.cancelled) == 3
